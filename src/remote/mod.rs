//! `.warp` files beyond this machine: in object stores and behind web servers.
//!
//! `location` knows URLs, and what of them may be shown; `backend` what the library that speaks to the stores has to be told;
//! `wire` stands between that library and the network, and sees every request; `fault` knows what went wrong and whether to
//! try again; [`Store`] is one store: requests within bounds and deadlines, in an async runtime of its own; [`Object`] is a
//! source of an archive's bytes, `blocks` what is remembered of what describes it, `on_disk` what a local disk has of it,
//! `fetches` what was asked for ahead;
//! [`Upload`] is the way back.
//!
//! An object is its ETag. Every request for a part of it says which one is meant (`If-Match`), and every answer is looked at
//! for it; where a server gives none, size and `Last-Modified` stand in. What was opened is read to its end or not at all:
//! an object that was replaced is [`ErrorKind::Changed`](crate::ErrorKind::Changed), and who opens it anew has the new one.
//!
//! Threads that want something wait for it, and no longer than the deadline. All else happens in the store's runtime, which
//! must not be started before a mount has forked.

mod backend;
mod blocks;
mod fault;
mod fetches;
mod location;
mod object;
mod on_disk;
mod store;
mod upload;
mod wire;

pub(crate) use location::{Location, Protocol};
pub(crate) use object::Object;
pub(crate) use store::{Listed, Page, Store, StoreOptions, Version};
pub(crate) use upload::Upload;

//! Leaves who waits for a short answer on the processor he is on.
//!
//! The scheduler may wake him on another one, because his own is just busy answering him. Where that begins it goes on: of 101,000
//! answers to `ls -lR` on two processors 76,000 moved it, each to one that was halted, which a virtual machine takes 30
//! microseconds to wake. But where all that runs on a processor are threads that run when nobody else wants to (`SCHED_IDLE`,
//! sched(7)), the scheduler takes it for idle. So a thread that is kept on a processor steps aside, is one of those, while it answers
//! somebody who asks alone and has been moved. It has the processor again when he waits for something, and is as before then.
//! The calls for it take two microseconds, a tenth of a small read, which is why it is not done for who stays where he is anyway.
//!
//! It must not have to wait for him for long if he goes on instead: the kernel gives it the next request of its processor, which may
//! be another's. A thread that is kept nowhere, the [`Keeper`], looks after those that are aside every millisecond and brings back
//! whom it finds there twice. Where that happens nobody steps aside for a while.
//!
//! In turn with answers that do nothing of this, two processors, medians of three to seven: `ls -lR` of 100,000 files 1.9 instead of
//! 2.2 to 3.4 s, 10,000 small files, cold, 1.25 to 1.5 instead of 1.7 to 1.9 s, a question for an attribute 10 to 15 instead of 16 to
//! 33 µs. Reads of 4 KiB in random places take as long as before, also beside two and four programs that never sleep, the slowest
//! thousandth included.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::schedule::{Policy, Thread};
use super::start;

/// How long nobody else has asked, for one who asks to be alone, in microseconds.
const ALONE: u64 = 1000;
/// How long answering may take for who answers to step aside, in microseconds: a processor that was wanted for longer may be wanted
/// by others, and the move takes less than that.
const QUICK: u64 = 200;
/// Who comes back later than this is kept from his processor by others, in microseconds; or his asker has had something to do.
const LATE: u64 = 1000;
/// How long nobody steps aside then, in microseconds. On an idle machine that happens now and then as well, and all who ask are moved
/// meanwhile: docs/PERFORMANCE.md has what a longer pause cost `ls -lR`. Beside two programs that never sleep, 4 KiB in
/// random places took as long with either, the slowest hundredth included.
const PAUSE: u64 = 50_000;
/// Who has been moved twice within so many requests has not been by chance: it goes on until something is done about it.
const OFTEN: u32 = 16;
/// For how many answers to step aside then.
const ANSWERS: u32 = 256;
/// How often the keeper looks after those that are aside.
const ROUND: Duration = Duration::from_millis(1);
/// After how many rounds in which nobody has stepped aside the keeper sleeps.
const QUIET_ROUNDS: u32 = 100;
/// How long a mount may wait for the keeper to find out whether threads may step aside. It may be kept from its processor by others
/// while it does.
const TRIAL: Duration = Duration::from_millis(50);

/// Who asks. Several keep the processors busy by themselves, so that there is none to be moved to; and with threads that step aside
/// for them they stay together on one: four readers of 4 KiB of lz4 at random took 8 % longer.
pub(super) struct Askers {
    began: Instant,
    /// The thread that has asked last, and in the lower half the processor it asked from.
    last: AtomicU64,
    /// How many requests it has made since it was moved, as far as that matters.
    requests: AtomicU32,
    /// How many answers more to step aside for.
    answers: AtomicU32,
    /// Since when it has been the only one, or from when on it is to count as that, in microseconds since it began.
    since: AtomicU64,
    keeper: Arc<Keeper>,
    /// Wakes the keeper, and has it end when it is dropped.
    wake: SyncSender<()>,
}

impl Askers {
    /// Nobody has asked yet; `None` where threads may not step aside: to come back takes rights that going does not.
    pub(super) fn new() -> Option<Self> {
        let keeper = Arc::new(Keeper::default());
        let kept = Arc::clone(&keeper);
        let (wake, wakened) = mpsc::sync_channel(1);
        let (able, is_able) = mpsc::channel();
        // The keeper tries it, which has nothing else to do yet and may have to stay behind.
        start("keeper".to_owned(), move || {
            if may_come_back() && able.send(()).is_ok() {
                kept.keep(&wakened);
            }
        })
        .ok()?;
        is_able.recv_timeout(TRIAL).ok()?;
        Some(Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            requests: AtomicU32::new(OFTEN),
            answers: AtomicU32::new(0),
            since: AtomicU64::new(0),
            keeper,
            wake,
        })
    }

    /// Takes notice that this thread asks from this processor; whether to step aside for it. What is as it was is not written to
    /// again: all processors look at it.
    fn notice(&self, thread: u32, processor: u16, now: impl Fn() -> u64) -> bool {
        let asker = (u64::from(thread) << 32) | u64::from(processor);
        let last = self.last.load(Ordering::Relaxed);
        if last != asker {
            self.last.store(asker, Ordering::Relaxed);
        }
        // Those that have no number cannot be told apart. (Two that ask at once may take each other for one: that is a chance missed.)
        if thread == 0 || last >> 32 != asker >> 32 {
            self.since.fetch_max(now(), Ordering::Relaxed);
            write(&self.requests, OFTEN);
            write(&self.answers, 0);
            return false;
        }
        let requests = self.requests.load(Ordering::Relaxed);
        if last == asker {
            write(&self.requests, requests.saturating_add(1).min(OFTEN));
        } else {
            if requests < OFTEN {
                write(&self.answers, ANSWERS);
            }
            write(&self.requests, 0);
        }
        let answers = self.answers.load(Ordering::Relaxed);
        if answers == 0 {
            return false;
        }
        write(&self.answers, answers - 1);
        now().saturating_sub(self.since.load(Ordering::Relaxed)) > ALONE
    }

    /// Nobody steps aside until then.
    fn pause_until(&self, then: u64) {
        self.since.fetch_max(then, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn write(to: &AtomicU32, value: u32) {
    if to.load(Ordering::Relaxed) != value {
        to.store(value, Ordering::Relaxed);
    }
}

/// Whether this thread, which displaces nobody, may step aside and be an ordinary one after that; it is one then, and so is there
/// sooner for those it is to bring back.
fn may_come_back() -> bool {
    let thread = Thread::this();
    thread.policy() == Ok(Policy::Batch)
        && thread.be(Policy::Idle).is_ok()
        && thread.be(Policy::Ordinary).is_ok()
}

/// A thread that answers, and steps aside.
pub(super) struct Answerer {
    askers: Arc<Askers>,
    /// Which it is kept on, and whose requests it answers.
    processor: u16,
    thread: Thread,
    turns: Arc<Turns>,
}

impl Answerer {
    /// This thread, which is kept on a processor and answers its requests.
    pub(super) fn new(askers: &Arc<Askers>, processor: u16) -> Self {
        let thread = Thread::this();
        let turns = Arc::new(Turns::default());
        askers.keeper.look_after(thread, &turns);
        Self {
            askers: Arc::clone(askers),
            processor,
            thread,
            turns,
        }
    }

    /// A thread asks; `None` if it is not known to be the only one and to have been that for a while, or if answers have not
    /// moved it lately.
    pub(super) fn asked_by(&self, thread: u32) -> Option<Alone<'_>> {
        let askers = &self.askers;
        let now = || askers.now();
        let step_aside = askers.notice(thread, self.processor, now);
        step_aside.then(|| Alone {
            answerer: self,
            asked: now(),
        })
    }

    /// Does what wakes somebody, so that he goes on on this thread's processor, and this thread when he waits again, ends, or the
    /// keeper says so. It must wait for nothing itself. Whoever has been given another policy (chrt(1)) before keeps it.
    fn step_aside(&self, wake: impl FnOnce()) {
        let _back = self.go().then(|| Aside(self));
        wake();
    }

    fn go(&self) -> bool {
        if self.thread.policy() != Ok(Policy::Batch) {
            return false;
        }
        self.turns.next();
        // After that the keeper finds it aside. If the channel is full, it has yet to look for the first time since then.
        let gone = match self.askers.wake.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => self.thread.be(Policy::Idle).is_ok(),
            Err(TrySendError::Disconnected(())) => false,
        };
        if !gone {
            self.turns.next();
        }
        gone
    }
}

/// Comes back when dropped.
struct Aside<'a>(&'a Answerer);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Err(error) = bring_back(self.0.thread) {
            tracing::warn!("a thread runs only when nobody else wants to from now on: {error}");
            // The others will do better not to go.
            self.0.askers.pause_until(u64::MAX);
        }
        self.0.turns.next();
    }
}

/// Has a thread be as it was before it stepped aside; unless it is already, or somebody else has decided otherwise.
fn bring_back(thread: Thread) -> nix::Result<()> {
    if thread.policy()? != Policy::Idle {
        return Ok(());
    }
    thread.be(Policy::Batch)
}

/// The one who asks, and when he did, in microseconds.
pub(super) struct Alone<'a> {
    answerer: &'a Answerer,
    asked: u64,
}

impl Alone<'_> {
    /// Gives him a short answer, so that he goes on where he is.
    pub(super) fn answer(self, answer: impl FnOnce()) {
        let askers = &self.answerer.askers;
        let answered = askers.now();
        if answered.saturating_sub(self.asked) > QUICK {
            return answer();
        }
        self.answerer.step_aside(answer);
        let back = askers.now();
        if back.saturating_sub(answered) > LATE {
            askers.pause_until(back.saturating_add(PAUSE));
        }
    }
}

/// How often a thread has stepped aside and come back: odd while it is aside.
#[derive(Debug, Default)]
struct Turns(AtomicU64);

impl Turns {
    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn is_odd(turns: u64) -> bool {
        turns % 2 == 1
    }
}

/// Who brings back those that are aside for too long.
#[derive(Default)]
struct Keeper(Mutex<Vec<(Thread, Arc<Turns>)>>);

impl Keeper {
    fn look_after(&self, thread: Thread, turns: &Arc<Turns>) {
        self.answerers().push((thread, Arc::clone(turns)));
    }

    /// Until there is nobody any more who might wake it.
    fn keep(&self, wakened: &Receiver<()>) {
        while wakened.recv().is_ok() {
            self.bring_back_the_late(wakened);
        }
    }

    /// Until nobody has stepped aside for some time, or will any more.
    fn bring_back_the_late(&self, wakened: &Receiver<()>) {
        let mut before = self.turns();
        let mut quiet_rounds = 0;
        while quiet_rounds < QUIET_ROUNDS {
            thread::sleep(ROUND);
            let now = self.turns();
            let aside = now.iter().filter(|(_, turns)| Turns::is_odd(*turns));
            let mut is_quiet = match wakened.try_recv() {
                Ok(()) => false,
                Err(TryRecvError::Empty) => true,
                Err(TryRecvError::Disconnected) => return,
            };
            for late in aside {
                is_quiet = false;
                // A number is given to another thread only after all others have been.
                if before.contains(late)
                    && let Err(error) = bring_back(late.0)
                {
                    tracing::debug!("a thread stays aside: {error}");
                }
            }
            quiet_rounds = if is_quiet { quiet_rounds + 1 } else { 0 };
            before = now;
        }
    }

    fn turns(&self) -> Vec<(Thread, u64)> {
        let answerers = self.answerers();
        let turns = answerers
            .iter()
            .map(|(thread, turns)| (*thread, turns.0.load(Ordering::Relaxed)));
        turns.collect()
    }

    fn answerers(&self) -> MutexGuard<'_, Vec<(Thread, Arc<Turns>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::schedule::displace_nobody;
    use crate::left_out::left_out;

    /// On a thread of its own, which nobody else's test runs on, and which may step aside; not where nobody may: who is not root
    /// may not come back.
    fn aside(test: impl FnOnce(&Answerer) + Send) {
        let mut may = false;
        on_its_own(|| {
            let thread = Thread::this();
            may = thread
                .be(Policy::Idle)
                .and_then(|()| thread.be(Policy::Batch))
                .is_ok();
        });
        if may {
            on_its_own(|| {
                displace_nobody();
                // On a busy machine the keeper may be late.
                let askers = std::iter::repeat_with(Askers::new).flatten().next();
                test(&Answerer::new(&Arc::new(askers.unwrap()), 0));
            });
        } else {
            left_out("threads may not change how they are scheduled");
        }
    }

    fn on_its_own(test: impl FnOnce() + Send) {
        thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    fn wait_until(mut what: impl FnMut() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(60), "waited in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn who_steps_aside_runs_when_nobody_else_wants_to_and_comes_back() {
        aside(|answerer| {
            // Unless it is just brought back.
            wait_until(|| {
                let mut aside = None;
                answerer.step_aside(|| aside = answerer.thread.policy().ok());
                assert_eq!(answerer.thread.policy(), Ok(Policy::Batch));
                aside == Some(Policy::Idle)
            });
        });
    }

    #[test]
    fn who_has_been_given_another_policy_keeps_it() {
        on_its_own(|| {
            Thread::this().be(Policy::Ordinary).unwrap();
            assert!(Askers::new().is_none());
        });
        aside(|answerer| {
            let thread = answerer.thread;
            answerer.step_aside(|| thread.be(Policy::Ordinary).unwrap());
            assert_eq!(thread.policy(), Ok(Policy::Ordinary));
            answerer.step_aside(|| assert_eq!(thread.policy(), Ok(Policy::Ordinary)));
            assert_eq!(thread.policy(), Ok(Policy::Ordinary));
        });
    }

    #[test]
    fn who_steps_aside_comes_back_after_a_panic() {
        aside(|answerer| {
            let panics = || answerer.step_aside(|| panic!("on purpose"));
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
            assert!(panicked.is_err());
            assert_eq!(answerer.thread.policy(), Ok(Policy::Batch));
        });
    }

    #[test]
    fn who_is_aside_for_long_is_brought_back() {
        aside(|answerer| {
            let is_back = || answerer.thread.policy() == Ok(Policy::Batch);
            answerer.step_aside(|| wait_until(is_back));
            // The keeper sleeps before long, and is woken again.
            thread::sleep(2 * QUIET_ROUNDS * ROUND);
            answerer.step_aside(|| wait_until(is_back));
        });
    }

    #[test]
    fn the_keeper_ends_with_those_it_looks_after() {
        let mut keeper = None;
        aside(|answerer| {
            answerer.step_aside(|| {});
            keeper = Some(Arc::downgrade(&answerer.askers.keeper));
        });
        if let Some(keeper) = keeper {
            wait_until(|| keeper.strong_count() == 0);
        }
    }

    #[test]
    fn only_who_has_been_moved_and_asks_alone_is_stepped_aside_for() {
        aside(|answerer| {
            let askers = &answerer.askers;
            let notice = |thread, processor, now| askers.notice(thread, processor, || now);
            assert!(!notice(7, 0, 10));
            let mut now = 11 + ALONE;
            // By chance.
            assert!(!notice(7, 1, now));
            for _ in 0..OFTEN {
                assert!(!notice(7, 1, now));
            }
            assert!(!notice(7, 0, now));
            // By each answer.
            for _ in 0..ANSWERS {
                assert!(notice(7, 1, now));
            }
            assert!(!notice(7, 1, now));
            // Not for long after somebody else.
            assert!(!notice(8, 0, now));
            assert!(!notice(7, 0, now));
            assert!(!notice(7, 1, now));
            assert!(!notice(7, 0, now + ALONE));
            now += 1 + ALONE;
            assert!(notice(7, 1, now));
            // It has no number.
            assert!(!notice(0, 0, now));
            assert!(!notice(0, 1, now + 2 * ALONE));
        });
    }

    #[test]
    fn nobody_steps_aside_for_a_while_after_one_came_back_late() {
        aside(|answerer| {
            let askers = &answerer.askers;
            // Asked so late that the answer is quick on any machine.
            let asked = u64::MAX;
            Alone { answerer, asked }.answer(|| thread::sleep(Duration::from_micros(2 * LATE)));
            let later = askers.since.load(Ordering::Relaxed);
            assert!(later >= PAUSE + LATE);
            assert!(!askers.notice(0, 0, || 1));
            assert_eq!(askers.since.load(Ordering::Relaxed), later);
        });
    }

    #[test]
    fn who_has_taken_long_to_answer_does_not_step_aside() {
        aside(|answerer| {
            thread::sleep(Duration::from_micros(2 * QUICK));
            let policy = || answerer.thread.policy();
            let mut answered = None;
            Alone { answerer, asked: 0 }.answer(|| answered = policy().ok());
            assert_eq!(answered, Some(Policy::Batch));
        });
    }
}

//! Names in listings that no file can have: `a//b`, `a/../b`, and those with control characters.
//!
//! The stores' library refuses a whole listing for one such name. So what it is not to see is taken out of a listing's text before,
//! and counted.

use bytes::Bytes;

/// What lists names in the stores' languages, and where a name stands in each.
const ELEMENTS: [(&str, &str); 4] = [
    ("Contents", "Key"),
    ("CommonPrefixes", "Prefix"),
    ("Blob", "Name"),
    ("BlobPrefix", "Name"),
];

/// Whether a request with this query asks for a listing.
pub(super) fn is_of_listing(query: &str) -> bool {
    query
        .split('&')
        .any(|word| matches!(word, "list-type=2" | "comp=list"))
}

/// A listing without such names, and how many were taken out.
pub(super) fn without_odd(listing: Bytes) -> (Bytes, u64) {
    let Ok(text) = std::str::from_utf8(&listing) else {
        return (listing, 0);
    };
    let mut kept = String::new();
    let mut odd = 0;
    let mut rest = text;
    while let Some((before, element, behind)) = next_element(rest) {
        kept.push_str(before);
        match has_odd_name(element) {
            true => odd += 1,
            false => kept.push_str(element),
        }
        rest = behind;
    }
    if odd == 0 {
        return (listing, 0);
    }
    kept.push_str(rest);
    (kept.into(), odd)
}

/// What stands before the next element that lists a name, the element, and what stands behind.
fn next_element(text: &str) -> Option<(&str, &str, &str)> {
    let (place, element) = text.match_indices('<').find_map(|(place, _)| {
        let behind = text.get(place + 1..)?;
        let begins = |element: &str| {
            let rest = behind.strip_prefix(element);
            rest.is_some_and(|rest| rest.starts_with('>'))
        };
        let (element, _) = ELEMENTS.iter().find(|(element, _)| begins(element))?;
        Some((place, element))
    })?;
    let (before, behind) = text.split_at_checked(place)?;
    let closing = format!("</{element}>");
    let end = behind.find(&closing)? + closing.len();
    let (element, rest) = behind.split_at_checked(end)?;
    Some((before, element, rest))
}

fn has_odd_name(element: &str) -> bool {
    let name = ELEMENTS.iter().find_map(|(outer, inner)| {
        let rest = element.strip_prefix(&format!("<{outer}>"))?;
        let (_, rest) = rest.split_once(&format!("<{inner}>"))?;
        Some(rest.split_once("</")?.0)
    });
    name.is_some_and(is_odd)
}

/// Whether no file can have this name, which is written as in XML.
fn is_odd(name: &str) -> bool {
    let name = name
        .replace("&#x2F;", "/")
        .replace("&#47;", "/")
        .replace("&#46;", ".")
        .replace("&#x2E;", ".");
    let entities = name.split("&#").skip(1).filter_map(|entity| {
        let number = entity.split_once(';')?.0;
        match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => number.parse().ok(),
        }
    });
    let is_control = |number: u32| number < 32 || number == 127;
    if entities.into_iter().any(is_control) || name.chars().any(|letter| is_control(letter.into()))
    {
        return true;
    }
    // One slash at the end means nothing; one at the beginning the library takes away, and asks for another object.
    let inner = name.strip_suffix('/').unwrap_or(&name);
    inner.split('/').any(|part| matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_taken_out_of_a_listing_and_nothing_else() {
        let good = "<Contents><Key>a/b</Key><Size>1</Size></Contents>";
        let odd = [
            "<Contents><Key>a//b</Key><Size>1</Size></Contents>",
            "<Contents><Size>1</Size><Key>a/../b</Key></Contents>",
            "<Contents><Key>a&#x1;b</Key></Contents>",
            "<CommonPrefixes><Prefix>a//</Prefix></CommonPrefixes>",
            "<CommonPrefixes><Prefix>./</Prefix></CommonPrefixes>",
            "<CommonPrefixes><Prefix>/</Prefix></CommonPrefixes>",
            "<Contents><Key>/a/b</Key></Contents>",
        ];
        let prefix = "<CommonPrefixes><Prefix>a/b/</Prefix></CommonPrefixes>";
        let listing = format!("<L><Prefix>a//</Prefix>{good}{}{prefix}</L>", odd.concat());
        let (kept, left_out) = without_odd(listing.into());
        assert_eq!(kept, format!("<L><Prefix>a//</Prefix>{good}{prefix}</L>"));
        assert_eq!(left_out, 7);
        let cut = Bytes::from_static(b"<L><Contents><Key>a//b");
        assert_eq!(without_odd(cut.clone()), (cut, 0));
    }

    #[test]
    fn a_listing_of_very_many_empty_names_takes_no_time() {
        let text = "<Contents></Contents>".repeat(400_000);
        let start = std::time::Instant::now();
        assert_eq!(without_odd(text.clone().into()), (text.into(), 0));
        let took = start.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn requests_for_listings_are_known() {
        assert!(is_of_listing("delimiter=%2F&list-type=2&prefix=a"));
        assert!(is_of_listing("restype=container&comp=list"));
        assert!(!is_of_listing("prefix=list-type=2"));
    }
}

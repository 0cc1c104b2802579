//! Keys that lie in a given region.

use bytes::Bytes;
use strata_proto::metapb::Region;

/// A key made of `name` that lies in the region, or `None` where the range is too narrow.
///
/// Everything that begins with a region's start key lies behind the start, and before the
/// end unless the end begins with the start too; the first region, whose start is empty,
/// takes a prefix of zero bytes when its end is small.
pub fn key_in(region: &Region, name: &str) -> Option<Bytes> {
    let with_prefix = |zeros: usize| {
        let mut key = region.start_key.to_vec();
        key.resize(key.len() + zeros, 0);
        key.extend_from_slice(name.as_bytes());
        Bytes::from(key)
    };
    let fits = |key: &Bytes| region.end_key.is_empty() || *key < region.end_key;
    (0..=9).map(with_prefix).find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_lies_in_its_region_or_there_is_none() {
        let cases: [(&[u8], &[u8]); 7] = [
            (b"", b""),
            (b"", b"r\0\0\0\0\0\0\0\xfb"),
            (b"", b"\0\x06\0\0\0\0\0\0\xf9"),
            (b"\0\x06\0\0\0\0\0\0\xf9", b"\0\x0d\0\0\0\0\0\0\xf9"),
            (b"r\0\0\0\0\0\0\0\xfb", b"r\0\0\x01\0\0\0\0\xfb"),
            (b"\xff\xff\xff\xff\0\0\0\0\xfb", b""),
            (b"a", b"a\0\0s"),
        ];
        for (start, end) in cases {
            let region = Region {
                start_key: Bytes::from_static(start),
                end_key: Bytes::from_static(end),
                ..Default::default()
            };
            let key = key_in(&region, "strata-x").expect("the range is wide enough");
            assert!(&key[..] >= start, "{key:02x?} before {start:02x?}");
            assert!(
                end.is_empty() || &key[..] < end,
                "{key:02x?} behind {end:02x?}"
            );
        }
        let narrow = Region {
            start_key: Bytes::from_static(b"a"),
            end_key: Bytes::from_static(b"a\0"),
            ..Default::default()
        };
        assert_eq!(key_in(&narrow, "x"), None);
    }
}

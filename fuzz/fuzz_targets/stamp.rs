//! Stamps as text and encoded; what is read is written as the same, and the encodings compare as the stamps do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::stamp::Stamp;

fn encoded(stamp: &Stamp) -> Vec<u8> {
    let mut out = Vec::new();
    stamp.encode(&mut out);
    out
}

fuzz_target!(|input: &[u8]| {
    if let Some(stamp) = std::str::from_utf8(input).ok().and_then(|text| text.parse::<Stamp>().ok()) {
        assert_eq!(stamp.to_string().parse(), Ok(stamp.clone()));
        assert_eq!(Stamp::decode(&encoded(&stamp)), Some(stamp));
    }
    if let Some(stamp) = Stamp::decode(input) {
        assert_eq!(encoded(&stamp), input);
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
    }
    let (one, other) = input.split_at(input.len() / 2);
    if let (Some(one), Some(other)) = (Stamp::decode(one), Stamp::decode(other)) {
        assert_eq!(one.cmp(&other), encoded(&one).cmp(&encoded(&other)), "S3");
    }
});

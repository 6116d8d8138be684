//! What formats are called and what they cost.

use super::WeightFormat;

#[test]
fn every_format_is_found_by_its_name() {
    for format in WeightFormat::ALL {
        assert_eq!(WeightFormat::from_name(format.as_str()), Some(format));
    }
    assert_eq!(WeightFormat::from_name("int8"), Some(WeightFormat::Q8_0));
    assert_eq!(WeightFormat::from_name("int4"), None);
}

#[test]
fn formats_cost_what_their_blocks_say() {
    let bits = [32.0, 16.0, 16.0, 8.5, 4.625, 4.25, 4.5];
    for (format, bits) in WeightFormat::ALL.into_iter().zip(bits) {
        assert_eq!(format.bits_per_weight(), bits, "{}", format.as_str());
        assert_eq!(format.bytes(2048, 5632) as f64, bits / 8.0 * (2048 * 5632) as f64);
        assert_eq!(
            format.bytes(2033, 5632),
            format.bytes(2048, 5632),
            "filled up to panels"
        );
    }
    assert_eq!(WeightFormat::Q4_0.bytes(16, 65), WeightFormat::Q4_0.bytes(16, 128));
    assert_eq!(WeightFormat::F32.bytes(16, 65), 16 * 65 * 4);
}

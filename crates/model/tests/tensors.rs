//! What the bytes of each tensor type stand for, against `gguf`, the Python package of the format's authors.

use everstream_kernels::{WeightType, dequantize};
use everstream_model::GgmlType;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    types: Vec<Blocks>,
}

#[derive(Deserialize)]
struct Blocks {
    name: String,
    /// In hexadecimal.
    bytes: String,
    /// Of the numbers that they stand for.
    bits: Vec<u32>,
}

#[test]
fn every_type_is_read_as_its_authors_read_it() {
    let golden: Golden = serde_json::from_str(include_str!("golden/tensors.json")).unwrap();
    let mut known = vec![WeightType::F32];
    for Blocks { name, bytes, bits } in golden.types {
        let ty = GgmlType::SUPPORTED.iter().find(|ty| ty.name() == name).unwrap();
        let ty = ty.weight_type().unwrap();
        let digits = bytes.as_bytes().chunks(2);
        let bytes: Vec<u8> = digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let mut values = vec![0.0; bits.len()];
        dequantize(ty, &bytes, &mut values);
        for (i, (value, bits)) in values.iter().zip(bits).enumerate() {
            // A zero has no sign that anybody would miss.
            let expected = f32::from_bits(bits);
            assert!(
                value.to_bits() == bits || *value == expected,
                "{name} {i}: {value} {expected}"
            );
        }
        known.push(ty);
    }
    assert!(WeightType::ALL.iter().all(|ty| known.contains(ty)), "a type without golden blocks");
}

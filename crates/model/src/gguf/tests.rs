use super::*;

/// A file with all kinds of metadata and three tensors.
fn small() -> GgufBuilder {
    let mut file = GgufBuilder::new();
    file.set("general.architecture", "llama")
        .set("llama.block_count", 2u32)
        .set("llama.rope.freq_base", 10_000.0)
        .set("tokenizer.ggml.add_bos_token", true)
        .set("tokenizer.ggml.tokens", vec!["a".to_owned(), String::new(), "Ġb".to_owned()])
        .set("tokenizer.ggml.token_type", vec![1, 3, -1])
        .set("negative", GgufValue::I32(-5))
        .tensor("one", GgmlType::F32, &[3, 2], (0..24).collect())
        .tensor("two", GgmlType::Q8_0, &[64], vec![7; 68])
        .tensor("other", GgmlType::Q8_1, &[32, 1, 2], vec![9; 72]);
    file
}

fn parsed(bytes: Vec<u8>) -> Result<GgufFile, GgufError> {
    match GgufFile::from_bytes(bytes, "test.gguf") {
        Ok(file) => Ok(file),
        Err(LoadError::Gguf { path, problem }) => {
            assert_eq!(path, Path::new("test.gguf"));
            Err(problem)
        }
        Err(other) => panic!("unexpected error {other}"),
    }
}

fn small_file() -> GgufFile {
    parsed(small().build()).unwrap()
}

/// The offset at which `needle` begins.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap()
}

#[test]
fn metadata_comes_back_as_it_was_written() {
    let file = small_file();
    assert_eq!(file.version(), 3);
    assert_eq!(file.get_str("general.architecture").unwrap(), "llama");
    assert_eq!(file.get_u32("llama.block_count").unwrap(), 2);
    assert_eq!(file.get_f32("llama.rope.freq_base").unwrap(), 10_000.0);
    assert_eq!(file.find_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    let tokens: Vec<_> = file.get_arr_str("tokenizer.ggml.tokens").unwrap().collect();
    assert_eq!(tokens, ["a".as_bytes(), b"", "Ġb".as_bytes()]);
    let types = file.find_arr_scalar("tokenizer.ggml.token_type").unwrap().unwrap();
    let expected = [1, 3, -1].map(|number| Value::Signed(ValueType::I32, number));
    assert_eq!(types.collect::<Vec<_>>(), expected);
    assert_eq!(file.metadata().count(), 7);
    assert!(file.value("absent").is_none());
    assert_eq!(file.find_u32("absent").unwrap(), None);
}

#[test]
fn tensors_come_back_with_shape_and_bytes() {
    let file = small_file();
    let one = file.tensor("one").unwrap();
    assert_eq!((one.dims(), one.ty()), (&[3, 2][..], GgmlType::F32));
    assert_eq!((one.row_len(), one.n_rows(), one.n_elements()), (3, 2, 6));
    assert_eq!(file.tensor_data(one), (0..24).collect::<Vec<u8>>());
    assert_eq!(file.tensor_data(file.tensor("two").unwrap()), [7; 68]);
    assert!(file.tensors().values().all(|info| info.offset() % 32 == 0));
}

#[test]
fn wrong_types_and_missing_keys_are_named() {
    let file = small_file();
    let message = |error: LoadError| error.to_string();
    assert_eq!(
        message(file.get_u32("general.architecture").unwrap_err()),
        "test.gguf: metadata key `general.architecture` should be a whole number from 0 to \
         4294967295, but is string"
    );
    let negative = message(file.get_u32("negative").unwrap_err());
    assert!(negative.ends_with("but is i32 -5"), "{negative}");
    assert_eq!(
        message(file.get_str("absent").unwrap_err()),
        "test.gguf: metadata key `absent` is missing"
    );
    let array = message(file.get_arr_str("tokenizer.ggml.token_type").unwrap_err());
    assert!(array.ends_with("should be array of string, but is array of i32"), "{array}");
}

#[test]
fn tensors_that_cannot_be_computed_with_are_refused_by_name() {
    let file = small_file();
    let error = file.tensor("other").unwrap_err().to_string();
    assert_eq!(
        error,
        "test.gguf: tensor `other` has type Q8_1, which is not supported; supported are: F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS; choose another quantization of this model"
    );
    assert_eq!(file.require_supported_tensors().unwrap_err().to_string(), error);
    let missing = file.tensor("three").unwrap_err().to_string();
    assert_eq!(missing, "test.gguf: tensor `three` is missing");
}

#[test]
fn headers_of_other_kinds_are_told_apart() {
    let good = small().build();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parsed(file).unwrap_err()
    };
    assert_eq!(with(0, b"PK\x03\x04"), GgufError::BadMagic { found: r"PK\x03\x04".to_owned() });
    assert_eq!(with(4, &3u32.to_be_bytes()), GgufError::BigEndian);
    assert_eq!(with(4, &1u32.to_le_bytes()), GgufError::UnsupportedVersion { found: 1 });
    let huge = with(8, &u64::MAX.to_le_bytes());
    assert!(matches!(huge, GgufError::TooMany { count: u64::MAX, .. }), "{huge}");
    let many = with(16, &60_000u64.to_le_bytes());
    assert!(matches!(many, GgufError::TooShort { .. }), "{many}");

    let mut version_2 = good.clone();
    version_2[4] = 2;
    assert_eq!(parsed(version_2).unwrap().version(), 2);
}

#[test]
fn names_may_not_repeat() {
    let mut twice = GgufBuilder::new();
    twice.tensor("t", GgmlType::F32, &[1], vec![0; 4]).tensor("t", GgmlType::F32, &[1], vec![0; 4]);
    let expected = GgufError::DuplicateTensor { tensor: "t".to_owned() };
    assert_eq!(parsed(twice.build()).unwrap_err(), expected);

    let mut keys = GgufBuilder::new();
    keys.set("key1", 1u32).set("key2", 2u32);
    let mut bytes = keys.build();
    let at = find(&bytes, b"key2");
    bytes[at + 3] = b'1';
    let expected = GgufError::DuplicateKey { key: "key1".to_owned() };
    assert_eq!(parsed(bytes).unwrap_err(), expected);
}

#[test]
fn names_must_be_utf8_and_strings_need_not() {
    let mut bytes = small().build();
    let at = find(&bytes, b"negative");
    bytes[at] = 0xFF;
    assert!(matches!(parsed(bytes), Err(GgufError::NameNotUtf8 { what: "metadata key", .. })));

    let mut bytes = small().build();
    let at = find(&bytes, "Ġb".as_bytes());
    bytes[at] = 0xFF;
    let file = parsed(bytes).unwrap();
    let last = file.get_arr_str("tokenizer.ggml.tokens").unwrap().last().unwrap();
    assert_eq!(last, b"\xFF\xA0b");
}

#[test]
fn tensor_shapes_are_checked() {
    let check = |ty: GgmlType, dims: &[u64], bytes: usize| {
        let mut file = GgufBuilder::new();
        file.tensor("t", ty, dims, vec![0; bytes]);
        parsed(file.build()).unwrap_err()
    };
    let tensor = || "t".to_owned();
    let expected = GgufError::BadDimensionCount { tensor: tensor(), found: 0 };
    assert_eq!(check(GgmlType::F32, &[], 4), expected);
    let expected = GgufError::BadDimensionCount { tensor: tensor(), found: 5 };
    assert_eq!(check(GgmlType::F32, &[1; 5], 4), expected);
    let expected = GgufError::ZeroDimension { tensor: tensor(), dims: vec![4, 0] };
    assert_eq!(check(GgmlType::F32, &[4, 0], 4), expected);
    let expected = GgufError::PartialBlock {
        tensor: tensor(),
        ty: GgmlType::Q8_0,
        row_len: 33,
        block_len: 32,
    };
    assert_eq!(check(GgmlType::Q8_0, &[33], 68), expected);
    for dims in [vec![1 << 32, 1 << 32], vec![1 << 62, 2], vec![u64::MAX, 1], vec![1 << 63]] {
        let expected = GgufError::TooLarge { tensor: tensor(), dims: dims.clone() };
        assert_eq!(check(GgmlType::F32, &dims, 4), expected);
    }
    // The element count overflows although the size in bytes does not.
    let dims = vec![1 << 33, 1 << 31];
    let expected = GgufError::TooLarge { tensor: tensor(), dims: dims.clone() };
    assert_eq!(check(GgmlType::Q4_0, &dims, 4), expected);
    let outside = check(GgmlType::F32, &[5], 16);
    assert!(matches!(outside, GgufError::OutsideFile { bytes: 20, .. }), "{outside}");
}

#[test]
fn tensor_offsets_are_checked() {
    let good = small().build();
    let name = find(&good, b"two");
    let offset_at = name + 3 + 4 + 8 + 4;
    let with = |offset: u64| {
        let mut bytes = good.clone();
        bytes[offset_at..offset_at + 8].copy_from_slice(&offset.to_le_bytes());
        parsed(bytes)
    };
    assert!(matches!(with(0), Err(GgufError::Overlap { .. })));
    assert!(matches!(with(4), Err(GgufError::Misaligned { offset: 4, alignment: 32, .. })));
    for offset in [1 << 20, 1 << 63, u64::MAX - 31] {
        assert!(matches!(with(offset), Err(GgufError::OutsideFile { .. })), "{offset}");
    }
}

#[test]
fn alignment_is_a_sane_power_of_two() {
    for alignment in [1u32, 8, 32] {
        let mut file = small();
        file.set("general.alignment", alignment);
        // The builder aligns to 32, which is a multiple of all of these.
        parsed(file.build()).unwrap();
    }
    for alignment in [0u32, 24, 1 << 21, u32::MAX] {
        let mut file = small();
        file.set("general.alignment", alignment);
        let error = parsed(file.build()).unwrap_err();
        assert!(matches!(error, GgufError::BadAlignment { .. }), "{error}");
    }
    let mut file = small();
    file.set("general.alignment", "wide");
    let error = parsed(file.build()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "general.alignment is string, expected a power of two up to 1048576"
    );
}

/// A file with one key, whose type and value are given as bytes.
fn with_value(value: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(value);
    bytes
}

#[test]
fn every_scalar_type_is_decoded() {
    let check = |id: u32, raw: &[u8], expected: Value<'_>| {
        let value = [&id.to_le_bytes()[..], raw].concat();
        assert_eq!(parsed(with_value(&value)).unwrap().value("k"), Some(expected));
    };
    check(0, &[200], Value::Unsigned(ValueType::U8, 200));
    check(1, &[200], Value::Signed(ValueType::I8, -56));
    check(2, &[1, 255], Value::Unsigned(ValueType::U16, 0xFF01));
    check(3, &[1, 255], Value::Signed(ValueType::I16, -255));
    check(4, &[255; 4], Value::Unsigned(ValueType::U32, u64::from(u32::MAX)));
    check(5, &[255; 4], Value::Signed(ValueType::I32, -1));
    check(6, &1.5f32.to_le_bytes(), Value::Float(ValueType::F32, 1.5));
    check(7, &[1], Value::Bool(true));
    check(8, &[2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i'], Value::Str(b"hi"));
    check(10, &[255; 8], Value::Unsigned(ValueType::U64, u64::MAX));
    check(11, &[255; 8], Value::Signed(ValueType::I64, -1));
    check(12, &1.5f64.to_le_bytes(), Value::Float(ValueType::F64, 1.5));
    let unknown = GgufError::UnknownValueType { key: "k".to_owned(), id: 13 };
    assert_eq!(parsed(with_value(&[13, 0, 0, 0, 0])).unwrap_err(), unknown);
}

#[test]
fn arrays_of_arrays_are_walked_but_not_too_deep() {
    /// `depth` arrays of one element each, around a byte.
    fn nested(depth: usize) -> Vec<u8> {
        let mut value = 9u32.to_le_bytes().to_vec();
        for _ in 1..depth {
            value.extend(9u32.to_le_bytes());
            value.extend(1u64.to_le_bytes());
        }
        value.extend(0u32.to_le_bytes());
        value.extend(1u64.to_le_bytes());
        value.push(42);
        value
    }
    for depth in 1..=4 {
        let file = parsed(with_value(&nested(depth))).unwrap();
        assert!(matches!(file.value("k"), Some(Value::Array(array)) if array.len() == 1));
    }
    let expected = GgufError::NestedTooDeep { key: "k".to_owned(), limit: 4 };
    assert_eq!(parsed(with_value(&nested(5))).unwrap_err(), expected);
    assert_eq!(parsed(with_value(&nested(1000))).unwrap_err(), expected);
}

#[test]
fn arrays_cannot_promise_more_than_the_file_holds() {
    for element in [0u32, 4, 8, 9, 12] {
        for len in [2, 1 << 20, 1 << 61, u64::MAX] {
            let value = [&9u32.to_le_bytes()[..], &element.to_le_bytes(), &len.to_le_bytes()];
            let error = parsed(with_value(&value.concat())).unwrap_err();
            assert!(matches!(error, GgufError::TooShort { .. }), "{element} {len}: {error}");
        }
    }
}

/// Uses everything that a parsed file offers, so that a wrong range would be found.
fn touch(file: &GgufFile) {
    for (_, value) in file.metadata() {
        let _ = (value.describe_type(), value.as_u64(), value.as_str());
        if let Value::Array(array) = value {
            let n_strings = array.strings().map(|strings| strings.map(<[u8]>::len).count());
            let n_scalars = array.scalars().map(|scalars| scalars.count());
            assert!(n_strings.or(n_scalars).is_none_or(|count| count == array.len()));
        }
    }
    for info in file.tensors().values() {
        assert_eq!(file.tensor_data(info).len(), info.bytes());
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let good = small().build();
    for len in 0..good.len() {
        assert!(parsed(good[..len].to_vec()).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn a_file_with_any_byte_changed_does_no_harm() {
    let good = small().build();
    for at in 0..good.len() {
        for change in [0x01, 0x80, 0xFF, good[at], good[at].wrapping_sub(9)] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            if let Ok(file) = parsed(bytes) {
                touch(&file);
            }
        }
    }
}

#[test]
fn a_file_with_any_number_made_huge_does_no_harm() {
    let good = small().build();
    for at in 0..good.len() - 8 {
        for number in [u64::MAX, 1 << 63, 1 << 40, good.len() as u64, 0] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            if let Ok(file) = parsed(bytes) {
                touch(&file);
            }
        }
    }
}

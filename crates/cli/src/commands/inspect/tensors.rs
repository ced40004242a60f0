//! The tensors of a file: a summary by type, or all of them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use everstream_runtime::model::{GgmlType, GgufFile, TensorInfo};
use serde_json::{Value, json};

use crate::output;

/// Tensors of one type.
#[derive(Default)]
struct Group {
    tensors: usize,
    elements: u64,
    bytes: u64,
}

fn groups(gguf: &GgufFile) -> BTreeMap<GgmlType, Group> {
    let mut groups = BTreeMap::<_, Group>::new();
    for tensor in gguf.tensors().values() {
        let group = groups.entry(tensor.ty()).or_default();
        group.tensors += 1;
        group.elements = group.elements.saturating_add(tensor.n_elements() as u64);
        group.bytes = group.bytes.saturating_add(tensor.bytes() as u64);
    }
    groups
}

/// Bytes of all tensors.
fn all_bytes(gguf: &GgufFile) -> u64 {
    groups(gguf).values().fold(0, |sum, group| sum.saturating_add(group.bytes))
}

/// Bytes of the matrices that decoding a token reads: all but the embedding, of which it reads a
/// row, unless that serves as the output as well.
fn decode_bytes(gguf: &GgufFile) -> u64 {
    let is_tied = !gguf.has_tensor("output.weight");
    let is_read = |tensor: &&TensorInfo| {
        tensor.dims().len() > 1 && (is_tied || tensor.name() != "token_embd.weight")
    };
    let bytes = gguf.tensors().values().filter(is_read).map(|tensor| tensor.bytes() as u64);
    bytes.fold(0, u64::saturating_add)
}

pub(super) fn summary_json(gguf: &GgufFile) -> Value {
    let types: Vec<_> = groups(gguf)
        .into_iter()
        .map(|(ty, group)| {
            json!({
                "type": ty.name(),
                "supported": ty.is_supported(),
                "tensors": group.tensors,
                "elements": group.elements,
                "bytes": group.bytes,
            })
        })
        .collect();
    json!({
        "tensors": gguf.tensors().len(),
        "bytes": all_bytes(gguf),
        "bytes_per_decoded_token": decode_bytes(gguf),
        "types": types,
    })
}

pub(super) fn print_summary(gguf: &GgufFile, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<16} {} in {} tensors; a decoded token reads {}",
        "weights",
        output::size(all_bytes(gguf)),
        gguf.tensors().len(),
        output::size(decode_bytes(gguf)),
    )?;
    writeln!(out, "\n  {:<8} {:>7} {:>15} {:>10}", "type", "tensors", "elements", "size")?;
    for (ty, group) in groups(gguf) {
        let note = if ty.is_supported() { "" } else { "  not supported" };
        let Group { tensors, elements, bytes } = group;
        writeln!(out, "  {ty:<8} {tensors:>7} {elements:>15} {:>10}{note}", output::size(bytes))?;
    }
    Ok(())
}

pub(super) fn list_json(gguf: &GgufFile) -> Value {
    let tensor = |tensor: &TensorInfo| {
        json!({
            "name": tensor.name(),
            "type": tensor.ty().name(),
            "dims": tensor.dims(),
            "offset": tensor.offset(),
            "bytes": tensor.bytes(),
        })
    };
    gguf.tensors().values().map(tensor).collect()
}

pub(super) fn print_list(gguf: &GgufFile, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n  {:<36} {:<8} {:<20} {:>10}", "tensor", "type", "dimensions", "size")?;
    for tensor in gguf.tensors().values() {
        let dims: Vec<_> = tensor.dims().iter().map(usize::to_string).collect();
        writeln!(
            out,
            "  {:<36} {:<8} {:<20} {:>10}",
            super::clean(tensor.name()),
            tensor.ty(),
            dims.join(" × "),
            output::size(tensor.bytes() as u64),
        )?;
    }
    Ok(())
}

//! The engines behind one small trait: read tokens, get the logits of the last.

use std::io::BufReader;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use everstream_kernels::Isa;
use everstream_kv_cache::{KvCache, SinkWindow};
use everstream_model::{Model, ModelOptions, Sequence, Workspace};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

/// One stream of one engine; keys and values in f16, candle's in f32.
pub(crate) trait Stream {
    /// Forgets everything.
    fn clear(&mut self) -> anyhow::Result<()>;

    /// Reads tokens, at most the longest chunk, and returns the logits after the last.
    fn read(&mut self, tokens: &[u32]) -> anyhow::Result<&[f32]>;
}

/// How large a stream is, and on how many threads it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) n_threads: NonZeroUsize,
    /// Tokens that it will read.
    pub(crate) max_tokens: usize,
    /// Longest chunk; `n_batch` and `n_ubatch` of llama.cpp.
    pub(crate) chunk_tokens: usize,
}

/// What llama.cpp computes attention with.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum FlashAttention {
    /// llama.cpp's choice, and its default.
    Auto,
    /// Fused.
    On,
    /// Matrix products and softmax.
    Off,
}

/// Everstream's side.
pub(crate) struct Everstream<'m> {
    model: &'m Model,
    empty: KvCache,
    cache: KvCache,
    ws: Workspace,
}

/// Opens a model with Everstream.
pub(crate) fn open_everstream(
    path: &Path,
    n_threads: NonZeroUsize,
    isa: Isa,
) -> anyhow::Result<Model> {
    Ok(Model::open(path, ModelOptions { n_threads, isa, ..Default::default() })?)
}

impl<'m> Everstream<'m> {
    /// A stream under policy `sink`, whose window nothing leaves here.
    pub(crate) fn new(model: &'m Model, shape: Shape) -> anyhow::Result<Self> {
        let policy = SinkWindow { n_sink: 4, window_tokens: shape.max_tokens.max(1024) };
        let empty = KvCache::new(&model.cache_config(Arc::new(policy), 0, shape.chunk_tokens))?;
        Ok(Self { model, cache: empty.clone(), empty, ws: Workspace::default() })
    }
}

impl Stream for Everstream<'_> {
    /// The copy touches the cache's memory, which llama.cpp's has been as well.
    fn clear(&mut self) -> anyhow::Result<()> {
        self.cache = self.empty.clone();
        Ok(())
    }

    fn read(&mut self, tokens: &[u32]) -> anyhow::Result<&[f32]> {
        let sequence = Sequence::new(tokens, &mut self.cache);
        self.model.forward(&mut self.ws, &mut [sequence])?;
        Ok(self.model.logits(&mut self.ws, tokens.len() - 1..tokens.len()))
    }
}

/// A model in llama.cpp.
pub(crate) struct LlamaCpp {
    backend: LlamaBackend,
    model: LlamaModel,
}

impl LlamaCpp {
    /// Opens a model, on the CPU, and silences llama.cpp's log: its failures come back as errors.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut backend = LlamaBackend::init()?;
        backend.void_logs();
        let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default())
            .with_context(|| format!("llama.cpp cannot open {}", path.display()))?;
        Ok(Self { backend, model })
    }

    /// A metadata value of the file.
    pub(crate) fn metadata(&self, key: &str) -> anyhow::Result<String> {
        Ok(self.model.meta_val_str(key)?)
    }

    /// The tokens of a text; one for the beginning of the stream only if the model wants it.
    pub(crate) fn tokenize(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let vocab = self.model.vocab();
        let bos = vocab.should_add_bos().then(|| vocab.bos());
        let tokens = vocab.tokenize(text.as_bytes(), false, false);
        bos.into_iter().chain(tokens).map(|LlamaToken(id)| Ok(u32::try_from(id)?)).collect()
    }

    /// The text of tokens, for the eye: bytes that are no UTF-8 are replaced.
    pub(crate) fn text(&self, tokens: &[u32]) -> String {
        let vocab = self.model.vocab();
        let tokens: Vec<_> = tokens.iter().map(|&id| LlamaToken(id.cast_signed())).collect();
        String::from_utf8_lossy(&vocab.detokenize(&tokens, false, true)).into_owned()
    }

    /// A stream.
    pub(crate) fn stream(
        &self,
        shape: Shape,
        flash_attention: FlashAttention,
    ) -> anyhow::Result<LlamaCppStream<'_>> {
        let n_threads = i32::try_from(shape.n_threads.get())?;
        let chunk = u32::try_from(shape.chunk_tokens)?;
        let flash_attention = match flash_attention {
            FlashAttention::Auto => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(u32::try_from(shape.max_tokens)?))
            .with_n_batch(chunk)
            .with_n_ubatch(chunk)
            .with_n_threads(n_threads)
            .with_n_threads_batch(n_threads)
            .with_type_k(KvCacheType::F16)
            .with_type_v(KvCacheType::F16)
            .with_flash_attention_policy(flash_attention)
            .with_no_perf(true);
        let context = self.model.new_context(&self.backend, params)?;
        let batch = LlamaBatch::new(shape.chunk_tokens, 1);
        Ok(LlamaCppStream { context, batch, next: 0 })
    }
}

/// llama.cpp's side.
pub(crate) struct LlamaCppStream<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    /// Tokens read.
    next: i32,
}

impl Stream for LlamaCppStream<'_> {
    fn clear(&mut self) -> anyhow::Result<()> {
        self.context.clear_kv_cache();
        self.next = 0;
        Ok(())
    }

    fn read(&mut self, tokens: &[u32]) -> anyhow::Result<&[f32]> {
        self.batch.clear();
        let last = tokens.len().checked_sub(1).ok_or_else(|| anyhow!("no tokens to read"))?;
        for (i, &token) in tokens.iter().enumerate() {
            self.batch.add(LlamaToken(token.try_into()?), self.next, &[0], i == last)?;
            self.next += 1;
        }
        self.context.decode(&mut self.batch)?;
        // Waits until all is computed.
        Ok(self.context.get_logits_ith(i32::try_from(last)?))
    }
}

/// candle's side: a model and its only stream.
pub(crate) struct Candle {
    network: Network,
    /// Tokens read.
    next: usize,
    logits: Vec<f32>,
}

enum Network {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
}

impl Candle {
    /// Opens a model, on the CPU.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut file = BufReader::new(fs_err::File::open(path)?);
        let content = gguf_file::Content::read(&mut file)?;
        let architecture = content.metadata.get("general.architecture");
        let architecture = architecture.context("no architecture")?.to_string()?.clone();
        let device = &Device::Cpu;
        let network = match architecture.as_str() {
            "llama" => Network::Llama(quantized_llama::ModelWeights::from_gguf(
                content, &mut file, device,
            )?),
            "qwen2" => Network::Qwen2(quantized_qwen2::ModelWeights::from_gguf(
                content, &mut file, device,
            )?),
            other => bail!("candle is asked for llama and qwen2 only, not for {other}: add --no-candle"),
        };
        Ok(Self { network, next: 0, logits: Vec::new() })
    }
}

impl Stream for Candle {
    fn clear(&mut self) -> anyhow::Result<()> {
        match &mut self.network {
            Network::Llama(network) => network.clear_kv_cache(),
            Network::Qwen2(network) => network.clear_kv_cache(),
        }
        self.next = 0;
        Ok(())
    }

    fn read(&mut self, tokens: &[u32]) -> anyhow::Result<&[f32]> {
        let x = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match &mut self.network {
            Network::Llama(network) => network.forward(&x, self.next)?,
            Network::Qwen2(network) => network.forward(&x, self.next)?,
        };
        self.next += tokens.len();
        self.logits = logits.squeeze(0)?.to_vec1()?;
        Ok(&self.logits)
    }
}

//! A model ready to run: weights, tokenizer, template, and the threads that compute.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use everstream_kernels::{Isa, PackedMatrix, Pool, Rope, read_bandwidth};
use everstream_kv_cache::{CacheConfig, EvictionPolicy, KvType, LayerKind, RawKeys};

use crate::config::{ModelConfig, RopeScaling};
use crate::error::LoadError;
use crate::gguf::GgufFile;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// What the matrix products compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// The weights as they are stored; inputs of quantized weights in 8 bits.
    #[default]
    Quantized,
    /// Weights widened to f32 when the model is loaded, inputs in f32: slow and large, to measure
    /// what 8-bit inputs cost, and to compare with a reference.
    F32,
}

/// How a model computes.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// Threads, the caller's included.
    pub n_threads: NonZeroUsize,
    /// The instruction set.
    pub isa: Isa,
    /// The arithmetic.
    pub arithmetic: Arithmetic,
}

impl Default for ModelOptions {
    /// All cores that the process may use, and the widest instruction set.
    fn default() -> Self {
        let n_threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { n_threads, isa: Isa::detect(), arithmetic: Arithmetic::default() }
    }
}

/// An open-weight language model; shared by all streams that run on it.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) gguf: GgufFile,
    pub(crate) weights: Weights,
    pub(crate) kinds: Vec<LayerKind>,
    /// The kind of each layer.
    pub(crate) kind_of: Vec<usize>,
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    missing_bytes: Vec<u8>,
}

impl Model {
    /// Opens a GGUF file and packs its weights for the kernels.
    ///
    /// # Errors
    ///
    /// [`LoadError`], which names the file and what is wrong with it.
    ///
    /// # Cost
    ///
    /// Reads the whole file once and holds a copy of the weights; the token embedding stays mapped.
    pub fn open(path: &Path, options: ModelOptions) -> Result<Self, LoadError> {
        Self::from_gguf(GgufFile::open(path)?, options)
    }

    /// As [`Model::open`], from a parsed file.
    ///
    /// # Errors
    ///
    /// As [`Model::open`].
    pub fn from_gguf(gguf: GgufFile, options: ModelOptions) -> Result<Self, LoadError> {
        let config = ModelConfig::from_gguf(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
        let n_threads = options.n_threads;
        let pool =
            Pool::new(n_threads).map_err(|problem| LoadError::Threads { n_threads, problem })?;
        let weights = Weights::load(&gguf, &config, &pool, options.arithmetic)?;
        let (kinds, kind_of) = layer_kinds(&config, weights.rope_divisors.as_deref());
        let isa = options.isa;
        let missing_bytes = tokenizer.missing_bytes();
        Ok(Self {
            config,
            gguf,
            weights,
            kinds,
            kind_of,
            isa,
            pool,
            tokenizer,
            template,
            missing_bytes,
        })
    }

    /// Shape and constants.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file.
    #[must_use]
    pub fn gguf(&self) -> &GgufFile {
        &self.gguf
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Bytes that no token stands for; text with one of them cannot be read without loss.
    #[must_use]
    pub fn missing_bytes(&self) -> &[u8] {
        &self.missing_bytes
    }

    /// The chat template.
    #[must_use]
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Bytes of weights that decoding one token reads.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.matrices().map(|m| m.bytes()).sum()
    }

    /// Bytes of keys and values that decoding one token reads whose query sees `n_visible` tokens.
    #[must_use]
    pub fn kv_bytes(&self, n_visible: usize, kv_type: KvType) -> usize {
        let seen = |&kind: &usize| match self.kinds[kind].window_tokens {
            Some(window) => n_visible.min(window),
            None => n_visible,
        };
        self.kind_of.iter().map(seen).sum::<usize>() * 2 * self.config.kv_dim() * kv_type.bytes()
    }

    /// Reads all weights once and does nothing with them; returns bytes per second. Decoding has to read
    /// as many for each token ([`Model::weight_bytes`]), so it cannot be much faster than this.
    #[must_use]
    pub fn read_bandwidth(&self) -> f64 {
        let matrices: Vec<_> = self.matrices().collect();
        read_bandwidth(self.isa, &self.pool, &matrices)
    }

    /// What decoding a token multiplies with.
    fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let layers = self.weights.layers.iter().flat_map(|l| l.matrices());
        layers.chain([&self.weights.output])
    }

    /// The configuration of a cache for this model.
    #[must_use]
    pub fn cache_config(
        &self,
        policy: Arc<dyn EvictionPolicy>,
        recall_tokens: usize,
        chunk_tokens: usize,
    ) -> CacheConfig {
        CacheConfig {
            kinds: self.kinds.clone(),
            layers: self.kind_of.clone(),
            n_kv_heads: self.config.n_kv_heads,
            group: self.config.n_heads / self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            policy,
            recall_tokens,
            chunk_tokens,
            kv_type: KvType::default(),
            raw_keys: if recall_tokens > 0 { RawKeys::Keep } else { RawKeys::Drop },
            clusters: None,
        }
    }
}

/// The kinds of layers that a model has, and which each of its layers is.
fn layer_kinds(config: &ModelConfig, divisors: Option<&[f32]>) -> (Vec<LayerKind>, Vec<usize>) {
    let (base, dim) = (config.rope_base, config.rope_dim);
    let rope = Rope::new(base, dim);
    let rope = match (config.rope_scaling, divisors) {
        (RopeScaling::Linear(factor), _) => rope.slowed(&[factor]),
        (RopeScaling::Yarn(yarn), _) => {
            rope.slowed(&yarn.divisors(base, dim / 2)).magnified(yarn.magnitude())
        }
        (RopeScaling::LongRope { magnitude }, Some(divisors)) => {
            rope.slowed(divisors).magnified(magnitude)
        }
        (_, Some(divisors)) => rope.slowed(divisors),
        (_, None) => rope,
    };
    let mut kinds = vec![LayerKind { rope: rope.clone(), window_tokens: None }];
    let kind = |layer: usize| {
        let sliding = config.sliding_window.filter(|_| config.is_sliding(layer));
        let rope = match sliding {
            _ if !config.has_rope(layer) => Rope::none(),
            // Scaling is for layers that see far.
            Some(window) if window.rope_base != base => Rope::new(window.rope_base, dim),
            _ => rope.clone(),
        };
        let kind = LayerKind { rope, window_tokens: sliding.map(|window| window.window_tokens) };
        kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        })
    };
    let kind_of = (0..config.n_layers).map(kind).collect();
    (kinds, kind_of)
}

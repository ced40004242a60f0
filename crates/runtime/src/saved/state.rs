//! The saved state of a session: one record in one file.

use std::path::Path;

use everstream_kv_cache::{
    ClusterBias, ClusterConfig, ClusterForm, ClusterPlace, KvType, Place, TimelineState, TokenPos,
};
use everstream_memory::codec::{Decoder, Encoder};
use everstream_memory::record::{self, PREFIX_BYTES};
use everstream_memory::{BlockSizes, KvType as MemoryType, Maker, write_whole};
use fs_err::File;

use super::journal::{
    RecallRef, decode_insertion, decode_origin, decode_recall, encode_insertion, encode_origin,
    encode_recall,
};
use crate::ingest::DocumentProgress;
use crate::{Insertion, Origin, SessionConfig, SessionError};

const KIND: u8 = 1;
const VERSION: u32 = 3;
/// The oldest that can be read: without clusters.
const FIRST_VERSION: u32 = 2;

/// The settings that a saved stream was made with and cannot change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Tokens kept from the start of the stream.
    pub n_sink: usize,
    /// Past tokens that a query sees besides the sinks.
    pub window_tokens: usize,
    /// Capacity for recalled tokens.
    pub context_tokens: usize,
    /// How what has left is summarised.
    pub clusters: Option<ClusterConfig>,
    /// Storage type of keys and values in the cache.
    pub kv_type: KvType,
    /// Storage type of keys and values in the memory.
    pub memory_type: MemoryType,
    /// Tokens per block.
    pub sizes: BlockSizes,
}

impl Geometry {
    /// What `config` says of it.
    #[must_use]
    pub fn of(config: &SessionConfig) -> Self {
        Self {
            n_sink: config.n_sink,
            window_tokens: config.window_tokens,
            context_tokens: config.context_tokens,
            clusters: config.clusters,
            kv_type: config.kv_type,
            memory_type: config.memory_type,
            sizes: config.recall.sizes,
        }
    }

    /// Writes it into `config`.
    pub fn apply(&self, config: &mut SessionConfig) {
        config.n_sink = self.n_sink;
        config.window_tokens = self.window_tokens;
        config.context_tokens = self.context_tokens;
        config.clusters = self.clusters;
        config.kv_type = self.kv_type;
        config.memory_type = self.memory_type;
        config.recall.sizes = self.sizes;
    }

    /// The first setting that differs: its name, the value here, the value there.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let sizes = |s: BlockSizes| format!("{} to {} tokens", s.min(), s.max());
        let clusters = |g: &Self| g.clusters.map_or("none".to_owned(), |c| c.to_string());
        let all = [
            ("summary", clusters(self), clusters(other)),
            ("number of sinks", self.n_sink.to_string(), other.n_sink.to_string()),
            ("window", self.window_tokens.to_string(), other.window_tokens.to_string()),
            ("recalled context", self.context_tokens.to_string(), other.context_tokens.to_string()),
            ("cache type", format!("{:?}", self.kv_type), format!("{:?}", other.kv_type)),
            ("memory type", self.memory_type.name().into(), other.memory_type.name().into()),
            ("block size", sizes(self.sizes), sizes(other.sizes)),
        ];
        all.into_iter().find(|(_, here, there)| here != there)
    }

    /// # Errors
    ///
    /// [`SessionError::Geometry`] if `asked` differs.
    pub(super) fn check(&self, asked: &Self) -> Result<(), SessionError> {
        match self.difference(asked) {
            Some((what, saved, asked)) => Err(SessionError::Geometry { what, saved, asked }),
            None => Ok(()),
        }
    }

    fn encode(&self, to: &mut Encoder) {
        let (s, u32) = (self.sizes, |n: usize| u32::try_from(n).expect("sizes are below 2^30"));
        for n in
            [self.n_sink, self.window_tokens, self.context_tokens, s.min(), s.target(), s.max()]
        {
            to.u32(u32(n));
        }
        to.u8(match self.kv_type {
            KvType::F32 => 0,
            KvType::F16 => 1,
        });
        to.kv_type(self.memory_type);
        encode_clusters(self.clusters, to);
    }

    fn decode(from: &mut Decoder<'_>, version: u32) -> Option<Self> {
        let mut size = || Some(from.u32()? as usize);
        let (n_sink, window_tokens, context_tokens) = (size()?, size()?, size()?);
        let sizes = BlockSizes::new(size()?, size()?, size()?).ok()?;
        let kv_type = *[KvType::F32, KvType::F16].get(usize::from(from.u8()?))?;
        let memory_type = from.kv_type()?;
        let clusters = if version == FIRST_VERSION { None } else { decode_clusters(from)? };
        Some(Self { n_sink, window_tokens, context_tokens, clusters, kv_type, memory_type, sizes })
    }
}

fn encode_clusters(clusters: Option<ClusterConfig>, to: &mut Encoder) {
    let c = clusters.unwrap_or(ClusterConfig { n_clusters: 0, ..Default::default() });
    to.u64(c.n_clusters as u64);
    to.u8(ClusterPlace::ALL.iter().position(|&place| place == c.place).unwrap_or_default() as u8);
    to.u8(ClusterForm::ALL.iter().position(|&form| form == c.form).unwrap_or_default() as u8);
    to.u8(ClusterBias::ALL.iter().position(|&bias| bias == c.bias).unwrap_or_default() as u8);
    to.u64(c.n_members);
    to.u64(c.segment_tokens as u64);
    to.u64(c.reach_tokens as u64);
    to.u64(c.seed);
}

fn decode_clusters(from: &mut Decoder<'_>) -> Option<Option<ClusterConfig>> {
    let config = ClusterConfig {
        n_clusters: usize::try_from(from.u64()?).ok()?,
        place: *ClusterPlace::ALL.get(usize::from(from.u8()?))?,
        form: *ClusterForm::ALL.get(usize::from(from.u8()?))?,
        bias: *ClusterBias::ALL.get(usize::from(from.u8()?))?,
        n_members: from.u64()?,
        segment_tokens: usize::try_from(from.u64()?).ok()?,
        reach_tokens: usize::try_from(from.u64()?).ok()?,
        seed: from.u64()?,
    };
    Some(Some(config).filter(|config| config.n_clusters > 0))
}

/// What is known of a saved session without its model.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) maker: Maker,
    pub(crate) geometry: Geometry,
    pub(crate) n_tokens: u64,
}

/// Everything that changes of a session as its stream goes on, but for its stored blocks.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) timeline: TimelineState,
    pub(crate) awaits_answer: bool,
    pub(crate) last_turn: Option<TokenPos>,
    pub(crate) documents: Vec<DocumentProgress>,
    pub(crate) reading: Option<usize>,
    pub(crate) recent: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) first_open: TokenPos,
    /// Each open token, and whether it is a word.
    pub(crate) open: Vec<(u32, Origin)>,
    pub(crate) recalled: Option<RecallRef>,
    pub(crate) pins: Vec<String>,
    pub(crate) recalled_at: u64,
    pub(crate) recalled_as: Insertion,
    pub(crate) rows: Vec<u8>,
}

/// Writes a state in one step.
pub(crate) fn write(path: &Path, header: &Header, state: &State) -> Result<(), SessionError> {
    let mut head = Encoder::default();
    head.u32(VERSION);
    head.u64(header.n_tokens);
    header.geometry.encode(&mut head);
    header.maker.encode(&mut head);
    let mut body = Encoder::default();
    state.encode(&mut body);
    if u32::try_from(body.0.len()).is_err() {
        let bytes = body.0.len() as u64;
        return Err(SessionError::StateTooLarge { bytes });
    }
    let mut bytes = Vec::with_capacity(body.0.len() + 1024);
    record::encode(KIND, &head.0, &body.0, &mut bytes);
    Ok(write_whole(path, &bytes)?)
}

/// Reads what is known without a model; `None` if the file is damaged.
pub(crate) fn read_header(path: &Path) -> Result<Option<Header>, SessionError> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let Some((_, head)) = record::read_at(&file, 0, len)? else { return Ok(None) };
    Ok(decode_header(path, &head)?.map(|(header, _)| header))
}

/// Reads a state; `None` if the file is damaged.
pub(crate) fn read(path: &Path) -> Result<Option<(Header, State)>, SessionError> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let Some((prefix, head)) = record::read_at(&file, 0, len)? else { return Ok(None) };
    let mut body = vec![0; prefix.body_len];
    record::read_exact_at(&file, &mut body, (PREFIX_BYTES + prefix.head_len) as u64)?;
    if record::checksum(&body) != prefix.body_crc {
        return Ok(None);
    }
    let Some((header, version)) = decode_header(path, &head)? else { return Ok(None) };
    Ok(State::decode(&body, &header, version).map(|state| (header, state)))
}

fn decode_header(path: &Path, head: &[u8]) -> Result<Option<(Header, u32)>, SessionError> {
    let mut from = Decoder(head);
    let Some(version) = from.u32() else { return Ok(None) };
    if !(FIRST_VERSION..=VERSION).contains(&version) {
        let (path, found) = (path.to_owned(), version);
        return Err(SessionError::StateVersion { path, found, expected: VERSION });
    }
    let mut header = || {
        let n_tokens = from.u64()?;
        let geometry = Geometry::decode(&mut from, version)?;
        let maker = Maker::decode(&mut from)?;
        from.end()?;
        Some((Header { maker, geometry, n_tokens }, version))
    };
    Ok(header())
}

impl State {
    fn encode(&self, to: &mut Encoder) {
        let TimelineState { next, shift, gap, recalled, hidden_before, clusters } = self.timeline;
        [next.0, shift, hidden_before.0].iter().for_each(|&n| to.u64(n));
        let (at, len) = gap.map_or((0, 0), |(at, len)| (at.0, len as u64));
        to.u64(at);
        to.u64(len);
        let (place, len) = recalled.map_or((0, 0), |(place, len)| match place {
            Place::Between => (1, len as u64),
            Place::Near => (2, len as u64),
        });
        to.u8(place);
        to.u64(len);
        to.u64(clusters.0 as u64);
        to.u64(clusters.1.0);
        to.u8(u8::from(self.awaits_answer));
        to.u64(self.last_turn.map_or(u64::MAX, |turn| turn.0));
        to.u32(u32::try_from(self.documents.len()).expect("fewer documents than 2^32"));
        for document in &self.documents {
            to.0.extend_from_slice(&document.digest);
            to.u64(document.n_read);
        }
        to.u64(self.reading.map_or(u64::MAX, |at| at as u64));
        to.u32s(&self.recent);
        to.f32s(&self.logits);
        to.u64(self.recalled_at);
        encode_insertion(self.recalled_as, to);
        to.u64(self.first_open.0);
        to.u32(u32::try_from(self.open.len()).expect("fewer tokens are open than a block holds"));
        for (id, origin) in &self.open {
            to.u32(*id);
            to.u8(u8::from(origin.is_words()));
            encode_origin(origin, to);
        }
        match &self.recalled {
            None => to.u8(0),
            Some(recalled) => {
                to.u8(1);
                encode_recall(recalled, to);
            }
        }
        to.u32(u32::try_from(self.pins.len()).expect("fewer texts than tokens"));
        self.pins.iter().for_each(|pin| to.bytes(pin.as_bytes()));
        to.0.extend_from_slice(&self.rows);
    }

    fn decode(body: &[u8], header: &Header, version: u32) -> Option<Self> {
        let mut from = Decoder(body);
        let (next, shift, hidden_before) =
            (TokenPos(from.u64()?), from.u64()?, TokenPos(from.u64()?));
        let mut len = || Some((from.u64()?, usize::try_from(from.u64()?).ok()?));
        let gap = len().map(|(at, len)| (len > 0).then_some((TokenPos(at), len)))?;
        let (place, len) = (from.u8()?, usize::try_from(from.u64()?).ok()?);
        let recalled = match place {
            0 => None,
            1 => Some((Place::Between, len)),
            2 => Some((Place::Near, len)),
            _ => return None,
        };
        let clusters = match version {
            FIRST_VERSION => (0, TokenPos(header.geometry.n_sink as u64)),
            _ => (usize::try_from(from.u64()?).ok()?, TokenPos(from.u64()?)),
        };
        let timeline = TimelineState { next, shift, gap, recalled, hidden_before, clusters };
        let awaits_answer = from.u8()? != 0;
        let last_turn = Some(from.u64()?).filter(|&turn| turn != u64::MAX).map(TokenPos);
        let n_documents = from.u32()?;
        let mut document = || {
            let digest = from.take(32)?.try_into().ok()?;
            Some(DocumentProgress { digest, n_read: from.u64()? })
        };
        let documents: Vec<_> = (0..n_documents).map(|_| document()).collect::<Option<_>>()?;
        let reading = usize::try_from(from.u64()?).ok().filter(|&at| at < documents.len());
        let (recent, logits) = (from.u32s()?, from.f32s()?);
        let (recalled_at, recalled_as) = (from.u64()?, decode_insertion(&mut from)?);
        let (first_open, n_open) = (TokenPos(from.u64()?), from.u32()?);
        let mut open_token = || {
            let (id, is_words) = (from.u32()?, from.u8()? != 0);
            let words = if is_words { 0..usize::MAX } else { 0..0 };
            Some((id, decode_origin(&mut from)?.with_words(words)))
        };
        let open = (0..n_open).map(|_| open_token()).collect::<Option<_>>()?;
        let recalled = match from.u8()? {
            0 => None,
            _ => Some(decode_recall(&mut from)?),
        };
        let n_pins = from.u32()?;
        let pins = (0..n_pins).map(|_| from.text().map(str::to_owned)).collect::<Option<_>>()?;
        let rows = from.0.to_vec();
        Some(Self {
            timeline,
            awaits_answer,
            last_turn,
            documents,
            reading,
            recent,
            logits,
            first_open,
            open,
            recalled,
            pins,
            recalled_at,
            recalled_as,
            rows,
        })
    }
}

//! What happened to a stream since it was last saved, in order: it is replayed after a crash.
//!
//! Everything that decides what the model sees is written before it is done: the tokens of each
//! chunk, which blocks were recalled, where turns end. Nothing that is computed is.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use everstream_kv_cache::{Place, TokenPos};
use everstream_memory::codec::{Decoder, Encoder};
use everstream_memory::record::{self, Found};
use everstream_memory::{BlockId, Recall, RecalledText};
use fs_err::{File, OpenOptions};
use std::io::Write;

use crate::recalling::Reinsertion;
use crate::{Insertion, Origin, SessionError};

const TOKENS: u8 = 1;
const RECALL: u8 = 2;
const END_RECALL: u8 = 3;
const BEGIN_ANSWER: u8 = 4;
const END_TURN: u8 = 5;
const DOCUMENT: u8 = 6;
const FORGET: u8 = 7;
const PIN: u8 = 8;
const UNPIN: u8 = 9;

/// A block that is or was in the recalled section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RecalledRef {
    pub(crate) id: BlockId,
    pub(crate) part: Range<TokenPos>,
    pub(crate) distance: f32,
}

/// What is or was in the recalled section.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RecallRef {
    pub(crate) texts: Vec<RecalledText>,
    pub(crate) blocks: Vec<RecalledRef>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Tokens were read; those of number `starts` saw nothing of the window before them.
    Tokens { tokens: Vec<u32>, starts: Vec<usize>, origin: Origin },
    /// Texts and blocks were recalled, in this order.
    Recall(Reinsertion, RecallRef),
    /// A recall ended and none followed.
    EndRecall,
    /// The model's turn began.
    BeginAnswer,
    /// A turn ended.
    EndTurn,
    /// A document began, or went on: its digest.
    Document([u8; 32]),
    /// Blocks with these tokens were forgotten.
    Forget(Range<TokenPos>),
    /// A text is in every recall from now on.
    Pin(String),
    /// The pinned text of this number is so no more.
    Unpin(usize),
}

impl Event {
    /// The token of a decode step, if it is one.
    pub(crate) fn decode_step(&self) -> Option<(u32, &Origin)> {
        match self {
            Self::Tokens { tokens, starts, origin } if starts.is_empty() => match tokens[..] {
                [token] => Some((token, origin)),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn tokens(tokens: &[u32], starts: &[usize], origin: &Origin) -> Self {
        let (tokens, starts) = (tokens.to_vec(), starts.to_vec());
        Self::Tokens { tokens, starts, origin: origin.clone() }
    }

    pub(crate) fn recall(how: Reinsertion, recall: &Recall) -> Self {
        Self::Recall(how, recall_ref(recall))
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        let mut to = Encoder::default();
        let kind = match self {
            Self::Tokens { tokens, starts, origin } => {
                encode_origin(origin, &mut to);
                to.u64(origin.words.start as u64);
                to.u64(origin.words.end as u64);
                let starts: Vec<u32> = starts.iter().map(|&start| start as u32).collect();
                to.u32s(&starts);
                to.u32s(tokens);
                TOKENS
            }
            Self::Recall(how, recalled) => {
                to.u8(u8::from(how.place == Place::Near));
                encode_insertion(how.insertion, &mut to);
                to.u64(how.hidden_before.0);
                encode_recall(recalled, &mut to);
                RECALL
            }
            Self::EndRecall => END_RECALL,
            Self::BeginAnswer => BEGIN_ANSWER,
            Self::EndTurn => END_TURN,
            Self::Document(digest) => {
                to.0.extend_from_slice(digest);
                DOCUMENT
            }
            Self::Forget(range) => {
                to.u64(range.start.0);
                to.u64(range.end.0);
                FORGET
            }
            Self::Pin(text) => {
                to.bytes(text.as_bytes());
                PIN
            }
            Self::Unpin(number) => {
                to.u64(*number as u64);
                UNPIN
            }
        };
        (kind, to.0)
    }

    fn decode(kind: u8, head: &[u8]) -> Option<Self> {
        let mut from = Decoder(head);
        let event = match kind {
            TOKENS => {
                let origin = decode_origin(&mut from)?;
                let words =
                    usize::try_from(from.u64()?).ok()?..usize::try_from(from.u64()?).ok()?;
                let starts = from.u32s()?.into_iter().map(|start| start as usize).collect();
                Self::Tokens { tokens: from.u32s()?, starts, origin: origin.with_words(words) }
            }
            RECALL => {
                let place = if from.u8()? == 0 { Place::Between } else { Place::Near };
                let insertion = decode_insertion(&mut from)?;
                let hidden_before = TokenPos(from.u64()?);
                let how = Reinsertion { place, insertion, hidden_before };
                Self::Recall(how, decode_recall(&mut from)?)
            }
            END_RECALL => Self::EndRecall,
            BEGIN_ANSWER => Self::BeginAnswer,
            END_TURN => Self::EndTurn,
            PIN => Self::Pin(from.text()?.to_owned()),
            UNPIN => Self::Unpin(usize::try_from(from.u64()?).ok()?),
            FORGET => Self::Forget(TokenPos(from.u64()?)..TokenPos(from.u64()?)),
            DOCUMENT => Self::Document(from.take(32)?.try_into().ok()?),
            _ => return None,
        };
        from.end()?;
        Some(event)
    }
}

pub(crate) fn recall_ref(recall: &Recall) -> RecallRef {
    let blocks = recall.blocks.iter();
    let to_ref = |block: &everstream_memory::RecalledBlock| RecalledRef {
        id: block.block.id(),
        part: block.part.clone(),
        distance: block.distance,
    };
    RecallRef { texts: recall.texts.clone(), blocks: blocks.map(to_ref).collect() }
}

pub(crate) fn encode_insertion(insertion: Insertion, to: &mut Encoder) {
    let place = Insertion::ALL.iter().position(|&i| i == insertion).unwrap_or_default();
    to.u8(place as u8);
}

pub(crate) fn decode_insertion(from: &mut Decoder<'_>) -> Option<Insertion> {
    Insertion::ALL.get(usize::from(from.u8()?)).copied()
}

pub(crate) fn encode_recall(recall: &RecallRef, to: &mut Encoder) {
    let n = |len| u32::try_from(len).expect("a recall has fewer than 2^32 parts");
    to.u32(n(recall.texts.len()));
    for text in &recall.texts {
        to.bytes(text.source.as_bytes());
        to.bytes(text.id.as_bytes());
        to.bytes(text.text.as_bytes());
        to.u32s(&text.tokens);
        to.u64(text.n_cut as u64);
        to.f32(text.distance);
    }
    to.u32(n(recall.blocks.len()));
    for block in &recall.blocks {
        to.u64(block.id.0);
        to.u64(block.part.start.0);
        to.u64(block.part.end.0);
        to.f32(block.distance);
    }
}

pub(crate) fn decode_recall(from: &mut Decoder<'_>) -> Option<RecallRef> {
    let n = from.u32()?;
    let mut text = || {
        Some(RecalledText {
            source: from.text()?.to_owned(),
            id: from.text()?.to_owned(),
            text: from.text()?.to_owned(),
            tokens: from.u32s()?,
            n_cut: usize::try_from(from.u64()?).ok()?,
            distance: from.f32()?,
        })
    };
    let texts = (0..n).map(|_| text()).collect::<Option<_>>()?;
    let n = from.u32()?;
    let mut block = || {
        let (id, part) = (BlockId(from.u64()?), TokenPos(from.u64()?)..TokenPos(from.u64()?));
        Some(RecalledRef { id, part, distance: from.f32()? })
    };
    let blocks = (0..n).map(|_| block()).collect::<Option<_>>()?;
    Some(RecallRef { texts, blocks })
}

/// Role, source and time; not which tokens are words.
pub(crate) fn encode_origin(origin: &Origin, to: &mut Encoder) {
    to.role(origin.role);
    to.time(origin.written_at.unwrap_or(SystemTime::UNIX_EPOCH));
    to.source(origin.source.as_ref());
}

pub(crate) fn decode_origin(from: &mut Decoder<'_>) -> Option<Origin> {
    let (role, time, source) = (from.role()?, from.time()?, from.source()?);
    Some(Origin { source, written_at: Some(time), ..Origin::turn(role) })
}

/// The file that events are appended to.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    len: u64,
    /// Tokens in it.
    pub(crate) n_tokens: u64,
    record: Vec<u8>,
}

impl Journal {
    /// Begins a journal; one that lies there is replaced.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(true).open(path)?;
        Ok(Self { file, len: 0, n_tokens: 0, record: Vec::new() })
    }

    /// Goes on with a journal behind its last whole event.
    pub(crate) fn resume(path: &Path) -> Result<Self, SessionError> {
        let len = whole_events(path)?.len;
        let file = OpenOptions::new().write(true).open(path)?;
        let mut journal = Self { file, len, n_tokens: 0, record: Vec::new() };
        journal.cut(len)?;
        Ok(journal)
    }

    /// All events of a journal up to where it ends or is damaged: what follows a damage would be
    /// replayed on another stream.
    pub(crate) fn read(path: &Path) -> Result<Events, SessionError> {
        whole_events(path)
    }

    /// Whether nothing happened since it was begun.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends an event and returns where it begins; it survives the end of the process from then
    /// on. If that fails, nothing of it is there.
    pub(crate) fn append(&mut self, event: &Event) -> io::Result<u64> {
        let (kind, head) = event.encode();
        self.record.clear();
        record::encode(kind, &head, &[], &mut self.record);
        let offset = self.len;
        // What an earlier call left behind, if it could not take it back.
        if self.file.metadata()?.len() != offset {
            self.cut(offset)?;
        }
        if let Err(error) = self.file.write_all(&self.record) {
            let _ = self.cut(offset);
            return Err(error);
        }
        self.len += self.record.len() as u64;
        if let Event::Tokens { tokens, .. } = event {
            self.n_tokens += tokens.len() as u64;
        }
        Ok(offset)
    }

    /// Takes back what was appended at `offset` and later: `n_tokens` tokens that were not read.
    pub(crate) fn undo(&mut self, offset: u64, n_tokens: usize) -> io::Result<()> {
        self.n_tokens -= n_tokens as u64;
        self.cut(offset)
    }

    fn cut(&mut self, offset: u64) -> io::Result<()> {
        use std::io::{Seek, SeekFrom};
        self.len = offset;
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.set_len(offset)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// What can be read of a journal.
#[derive(Debug)]
pub(crate) struct Events {
    /// Up to the first damage.
    pub(crate) events: Vec<Event>,
    /// The bytes that they take.
    pub(crate) len: u64,
    /// Whether all is read but what the end of a process left at the file's end.
    pub(crate) is_whole: bool,
    /// Whether whole events come behind a damage.
    pub(crate) has_more: bool,
}

fn whole_events(path: &Path) -> Result<Events, SessionError> {
    let (mut events, mut len, mut is_whole, mut has_more) = (Vec::new(), 0, true, false);
    record::scan::<io::Error>(&File::open(path)?, 0, &mut |found| {
        let event = match &found {
            Found::Record { prefix, head, .. } => Event::decode(prefix.kind, head),
            Found::Damaged(_) | Found::Torn(_) => None,
        };
        match (event, found) {
            (Some(event), Found::Record { offset, prefix, .. }) if is_whole => {
                events.push(event);
                len = offset + prefix.len();
            }
            (_, Found::Torn(_)) => {}
            (event, _) => (is_whole, has_more) = (false, has_more || event.is_some()),
        }
        Ok(())
    })?;
    Ok(Events { events, len, is_whole, has_more })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use everstream_memory::Role;

    use super::*;

    fn events() -> Vec<Event> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123);
        let origin = Origin { written_at: Some(time), ..Origin::file("a b/c.txt") };
        let part = TokenPos(5)..TokenPos(9);
        vec![
            Event::tokens(&[1, 2, 3], &[0, 2], &origin.clone().with_words(1..2)),
            Event::Recall(
                Reinsertion {
                    place: Place::Near,
                    insertion: Insertion::Repair,
                    hidden_before: TokenPos(40),
                },
                RecallRef {
                    texts: vec![RecalledText {
                        source: "notes".into(),
                        id: "a 1".into(),
                        text: "text".into(),
                        tokens: vec![5, 6],
                        n_cut: 3,
                        distance: 0.5,
                    }],
                    blocks: vec![RecalledRef { id: BlockId(7), part, distance: 0.25 }],
                },
            ),
            Event::BeginAnswer,
            Event::tokens(
                &[4],
                &[],
                &Origin { written_at: Some(time), ..Origin::turn(Role::Assistant) },
            ),
            Event::EndRecall,
            Event::EndTurn,
            Event::Document([9; 32]),
            Event::Forget(TokenPos(3)..TokenPos(70)),
            Event::Pin("Her name is Oda.".into()),
            Event::Unpin(2),
        ]
    }

    fn texts(events: &[Event]) -> Vec<String> {
        events.iter().map(|event| format!("{event:?}")).collect()
    }

    #[test]
    fn events_are_read_as_they_were_written_up_to_where_they_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path).unwrap();
        let mut ends = vec![0];
        for event in events() {
            let offset = journal.append(&event).unwrap();
            assert_eq!(Some(&offset), ends.last());
            ends.push(journal.len);
        }
        assert_eq!(journal.n_tokens, 4);
        let read = Journal::read(&path).unwrap();
        assert_eq!((texts(&read.events), read.is_whole), (texts(&events()), true));
        let whole = fs_err::read(&path).unwrap();
        for len in 0..whole.len() {
            fs_err::write(&path, &whole[..len]).unwrap();
            let n = ends.partition_point(|&end| end <= len as u64) - 1;
            let read = Journal::read(&path).unwrap();
            assert_eq!((texts(&read.events), read.is_whole), (texts(&events()[..n]), true));
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs_err::write(&path, &damaged).unwrap();
            let n = ends.partition_point(|&end| end <= at as u64) - 1;
            let read = Journal::read(&path).unwrap();
            assert_eq!(texts(&read.events), texts(&events()[..n]));
            // A damaged last record may look like one that was not finished.
            assert!(!read.is_whole || n + 1 == events().len(), "{at}");
        }
    }

    #[test]
    fn what_is_taken_back_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path).unwrap();
        let events = events();
        journal.append(&events[0]).unwrap();
        let offset = journal.append(&events[3]).unwrap();
        journal.undo(offset, 1).unwrap();
        journal.append(&events[5]).unwrap();
        let expected = texts(&[events[0].clone(), events[5].clone()]);
        assert_eq!(texts(&Journal::read(&path).unwrap().events), expected);
    }
}

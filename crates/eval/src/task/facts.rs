//! Facts in lines, and questions about lines long gone.

use super::{Reads, Task, TaskOptions, contains};
use crate::rng::{Rng, for_stream};
use crate::{EvalError, Form, Question, Stream};

/// One endless list of facts; every ten lines a question about a line so many tokens back.
///
/// Source: the test of the same name in Xiao et al., "Efficient Streaming Language Models with Attention
/// Sinks", 2023, arXiv:2309.17453, section 4.3, whose data was never released: lines of facts here are
/// generated, no two alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamEval;

/// Lines between questions, and of a paragraph.
const LINES: usize = 10;
/// Tokens of a line, about; distances are kept in lines.
const LINE_TOKENS: u64 = 16;
/// What a thing has.
const KINDS: [&str; 4] = ["code", "price", "weight", "number"];
const ADJECTIVES: &str = "\
able amber ample ancient angry bitter black bland blue bold brave brief bright brisk broad \
    broken brown busy calm careful cheap chilly clean clever cold common cosy crisp cruel \
    curious curved daring dark dear deep dense dim distant double dry dull dusty eager early \
    easy elder empty even faint fair false famous fancy fast fierce final fine firm flat fond \
    frail free fresh frosty full gentle giant glad golden grand grave great green grey happy \
    hard harsh heavy hidden high hollow honest huge humble hungry icy idle inner jolly keen \
    kind large late lazy light little local lonely long loud loyal lucky mad major mellow merry \
    mild minor modern muddy narrow neat new noble noisy old open orange pale plain polite poor \
    proud pure quick quiet rapid rare";
const NOUNS: &str = "\
acorn anchor apple arrow badge bakery barn barrel basket beacon bell bench boat bottle \
    bridge broom bucket button cabin camel candle cannon carpet castle cellar chain chair \
    chapel cherry clock cloud coach comb compass copper cottage crane cradle crown curtain \
    dagger daisy desk diamond donkey door dragon drum eagle engine falcon farm feather fence \
    ferry fiddle flag flute forest forge fountain fox garden garlic gate glove goat goose \
    guitar hammer harbour harp hat hedge helmet hill hinge horn horse hotel island jacket jar \
    kettle key kite kitchen ladder lamp lantern leaf lemon letter lion lock magnet map marble \
    market mask meadow medal melon mill mirror mole monkey moon needle nest oven owl paddle \
    palace pebble pencil pepper piano pigeon pillow pine pipe pirate plum pond";

impl Task for StreamEval {
    fn name(&self) -> &'static str {
        "stream-eval"
    }

    fn reads(&self) -> Reads {
        Reads::Nothing
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let distances = options.distances_or(&[500, 2_000, 8_000])?;
        let least = LINES as u64 * LINE_TOKENS;
        if let Some(short) = distances.iter().find(|&&distance| distance < least) {
            return Err(EvalError::Setting(format!("--distance {short}: use at least {least}")));
        }
        let per_distance = options.limit.div_ceil(distances.len()).max(1);
        let farthest = distances.iter().max().copied().unwrap_or(0) / LINE_TOKENS;
        let n_questions = per_distance.saturating_mul(distances.len());
        let n_lines = n_questions.saturating_add(1).saturating_mul(LINES);
        let n_lines = n_lines.saturating_add(farthest as usize);
        let mut rng = for_stream(options.seed, 0);
        let lines = lines(&mut rng, n_lines)?;
        // A document is ten lines: a paragraph of its own.
        let documents = lines.chunks(LINES).map(|chunk| {
            let text: String =
                chunk.iter().map(|l| format!("T{} {}.\n", l.question, l.answer)).collect();
            text + "\n"
        });
        let mut stream = Stream { documents: documents.collect(), questions: Vec::new() };
        let first = farthest as usize / LINES + 1;
        for i in 0..n_questions {
            let (after, distance) = (first + i, distances[i % distances.len()]);
            let back = (distance / LINE_TOKENS) as usize + rng.usize(..LINES);
            let number = (after * LINES).saturating_sub(back.max(1));
            let line = &lines[number];
            stream.questions.push(Question {
                id: format!("{distance}/{i}"),
                group: distance.to_string(),
                after,
                query: format!("What is t{}?", line.question.trim_end_matches(" is")),
                prompt: format!(
                    "What is t{}? T{}",
                    line.question.trim_end_matches(" is"),
                    line.question
                ),
                references: vec![line.answer.clone()],
                evidence: vec![number / LINES],
                form: Form::line(12),
            });
        }
        stream.questions.truncate(options.limit);
        Ok(vec![stream])
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        contains(answer, question)
    }

    fn group_name(&self) -> &'static str {
        "distance in tokens"
    }
}

struct Line {
    /// `he code of the loyal lantern is`, for both cases of the first letter.
    question: String,
    answer: String,
}

/// Lines of which no two are about the same thing.
fn lines(rng: &mut Rng, n: usize) -> Result<Vec<Line>, EvalError> {
    let adjectives: Vec<&str> = ADJECTIVES.split_whitespace().collect();
    let nouns: Vec<&str> = NOUNS.split_whitespace().collect();
    let n_things = adjectives.len() * nouns.len();
    let n_facts = n_things * KINDS.len();
    if n > n_facts {
        return Err(EvalError::Setting(format!(
            "--distance and --limit ask for {n} lines of facts, but there are {n_facts}: about {} tokens, of \
             which each question takes {}",
            n_facts as u64 * LINE_TOKENS,
            LINES as u64 * LINE_TOKENS
        )));
    }
    let mut numbers: Vec<usize> = (0..n_facts).collect();
    rng.shuffle(&mut numbers);
    let line = |number: usize, rng: &mut Rng| {
        let (kind, thing) = (KINDS[number / n_things], number % n_things);
        let (adjective, noun) = (adjectives[thing / nouns.len()], nouns[thing % nouns.len()]);
        let question = format!("he {kind} of the {adjective} {noun} is");
        Line { question, answer: rng.u32(10_000..100_000).to_string() }
    };
    Ok(numbers[..n].iter().map(|&number| line(number, rng)).collect())
}

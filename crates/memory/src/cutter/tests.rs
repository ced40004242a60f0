use super::*;
use everstream_kv_cache::rng::SplitMix64;

/// Cuts `tokens`, with a turn end after each of the given counts of tokens.
fn cut(sizes: BlockSizes, tokens: &[Vec<u8>], turn_ends: &[usize]) -> (Vec<usize>, BlockCutter) {
    let mut cutter = BlockCutter::new(sizes);
    let mut completed = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        cutter.push(token, &mut completed);
        assert!(cutter.open_tokens() < sizes.max(), "a block is complete within max tokens");
        if turn_ends.contains(&(i + 1)) {
            cutter.end_turn(&mut completed);
            assert!(cutter.open_tokens() < sizes.min(), "a turn end leaves less than min tokens");
        }
        assert_eq!(completed.iter().sum::<usize>() + cutter.open_tokens(), i + 1);
    }
    (completed, cutter)
}

/// `n_tokens` tokens that form sentences of `sentence` tokens, of which the last one is the stop.
fn prose(n_tokens: usize, sentence: usize) -> Vec<Vec<u8>> {
    (1..=n_tokens)
        .map(|i| if i % sentence == 0 { b".".to_vec() } else { b" Word".to_vec() })
        .collect()
}

/// Paragraphs of given token counts, the last token being the blank line.
fn paragraphs(lengths: &[usize], sentence: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for &n_tokens in lengths {
        all.extend(prose(n_tokens - 1, sentence));
        all.push(b"\n\n".to_vec());
    }
    all
}

fn check(tokens: &[Vec<u8>], expected: &[usize]) {
    let (mut completed, mut cutter) = cut(BlockSizes::default(), tokens, &[]);
    cutter.end_turn(&mut completed);
    assert_eq!(completed, expected);
}

#[test]
fn paragraphs_become_one_or_two_blocks() {
    check(&paragraphs(&[111, 81], 20), &[60, 51, 81]);
    check(&paragraphs(&[66, 70, 90], 20), &[66, 70, 90]);
    check(&paragraphs(&[151, 40], 15), &[60, 91, 40]);
}

#[test]
fn short_paragraphs_stand_alone_and_shorter_ones_are_joined() {
    check(&paragraphs(&[30, 30, 30, 30], 10), &[30, 30, 30, 30]);
    check(&paragraphs(&[20, 20, 20, 20, 20, 20], 10), &[60, 60]);
    check(&paragraphs(&[8, 8, 8, 8, 8, 8, 8, 8], 10), &[64]);
}

#[test]
fn a_heading_joins_its_paragraph() {
    check(&paragraphs(&[6, 111], 20), &[66, 51]);
}

#[test]
fn sentences_near_the_target_end_a_block() {
    check(&prose(200, 25), &[75, 75, 50]);
    check(&prose(140, 70), &[70, 70]);
}

#[test]
fn words_are_kept_whole_when_no_sentence_ends() {
    let mut pieces = Vec::new();
    for _ in 0..60 {
        pieces.extend([b" un".to_vec(), b"break".to_vec(), b"able".to_vec()]);
    }
    check(&pieces, &[66, 66, 48]);
}

#[test]
fn characters_are_kept_whole_when_no_word_ends() {
    let tokens: Vec<Vec<u8>> = "水".repeat(60).bytes().map(|byte| vec![byte]).collect();
    check(&tokens, &[66, 66, 48]);
}

#[test]
fn tokens_without_any_boundary_are_cut_at_the_target() {
    check(&vec![b"x".to_vec(); 200], &[64, 64, 72]);
    check(&vec![b"\n".to_vec(); 200], &[96, 96]);
    check(&vec![Vec::new(); 100], &[64, 36]);
}

#[test]
fn a_turn_end_closes_a_block_of_enough_tokens() {
    let sizes = BlockSizes::default();
    assert_eq!(cut(sizes, &prose(40, 20), &[16, 40]).0, [16, 24]);
    // Fifteen tokens are too few and join what follows.
    assert_eq!(cut(sizes, &prose(40, 20), &[15, 40]).0, [40]);
    // A long open block is cut at a sentence, and not so that a short rest is left over.
    assert_eq!(cut(sizes, &prose(94, 32), &[94]).0, [64, 30]);
    assert_eq!(cut(sizes, &prose(70, 60), &[70]).0, [70]);
}

#[test]
fn a_block_may_contain_a_turn_end() {
    assert_eq!(cut(BlockSizes::default(), &prose(60, 10), &[10, 50]).0, [50]);
}

#[test]
fn sizes_are_checked() {
    for (min, target, max) in [(0, 1, 1), (2, 1, 3), (1, 3, 2), (1, 2, BlockSizes::LIMIT + 1)] {
        assert!(BlockSizes::new(min, target, max).is_err(), "{min} {target} {max}");
    }
    let sizes = BlockSizes::new(1, 1, 1).unwrap();
    assert_eq!(cut(sizes, &prose(5, 2), &[]).0, [1; 5]);
    let sizes = BlockSizes::new(7, 7, 7).unwrap();
    assert_eq!(cut(sizes, &prose(20, 2), &[]).0, [7, 7]);
}

const PIECES: [&str; 24] = [
    " the", " Word", " a", "ing", " Mr", " J", ".", ".", "!", "?", ".\n", ".\n\n", "\n", "\n\n",
    " ", ",", "\"", " “", "”", "。", "水", "", " 3", " and",
];

fn random_tokens(rng: &mut SplitMix64, n_tokens: usize) -> Vec<Vec<u8>> {
    // Some streams have few places to cut, some have many.
    let plain = 1 + rng.below(12);
    (0..n_tokens)
        .map(|_| match rng.below(40) {
            0 => vec![rng.next_u64() as u8],
            1 => "é。”"[..].as_bytes()[rng.below(3)..].to_vec(),
            _ if rng.below(plain) > 0 => b" word".to_vec(),
            _ => PIECES[rng.below(PIECES.len())].as_bytes().to_vec(),
        })
        .collect()
}

fn random_sizes(rng: &mut SplitMix64) -> BlockSizes {
    if rng.below(3) == 0 {
        return BlockSizes::default();
    }
    let min = 1 + rng.below(20);
    let target = min + rng.below(40);
    BlockSizes::new(min, target, target + rng.below(40)).unwrap()
}

/// Looks at every place of every block before it takes one, as the cutter's documentation says.
fn naive(sizes: BlockSizes, mut tokens: &[Vec<u8>]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while tokens.len() >= sizes.max() {
        let mut scanner = Scanner::default();
        let mut places: Vec<_> =
            tokens[..sizes.max()].iter().map(|t| scanner.push(t)).enumerate().collect();
        places.push((sizes.max(), scanner.at_end()));
        let costs = places.iter().filter(|(n, _)| *n >= sizes.min()).map(|&(n, place)| {
            let earlier = &places[sizes.min().min(n)..n];
            let crossed = earlier.iter().any(|(_, place)| *place == Boundary::Paragraph);
            (cost(sizes, n, place, crossed), n)
        });
        let (_, n) = costs.min().unwrap();
        lengths.push(n);
        tokens = &tokens[n..];
    }
    lengths
}

#[test]
fn early_decisions_are_those_of_the_naive_cutter() {
    for seed in 0..400 {
        let mut rng = SplitMix64::new(seed);
        let sizes = random_sizes(&mut rng);
        let tokens = random_tokens(&mut rng, 700);
        let (completed, _) = cut(sizes, &tokens, &[]);
        let expected = naive(sizes, &tokens);
        assert_eq!(completed[..expected.len()], expected, "seed {seed}, {sizes:?}");
    }
}

#[test]
fn every_token_is_in_one_block_of_an_allowed_length() {
    for seed in 0..400 {
        let mut rng = SplitMix64::new(seed);
        let sizes = random_sizes(&mut rng);
        let tokens = random_tokens(&mut rng, 500);
        let turn_ends: Vec<usize> = (0..rng.below(20)).map(|_| 1 + rng.below(500)).collect();
        let (completed, cutter) = cut(sizes, &tokens, &turn_ends);
        for &n_tokens in &completed {
            assert!((sizes.min()..=sizes.max()).contains(&n_tokens), "seed {seed}: {n_tokens}");
        }
        assert_eq!(completed.iter().sum::<usize>() + cutter.open_tokens(), tokens.len());
    }
}

/// A session that resumes has the open tokens and nothing else.
#[test]
fn a_cutter_is_rebuilt_from_its_open_tokens() {
    for seed in 0..200 {
        let mut rng = SplitMix64::new(seed);
        let sizes = random_sizes(&mut rng);
        let tokens = random_tokens(&mut rng, 500);
        let turn_end = 1 + rng.below(499);
        let stop = turn_end + rng.below(500 - turn_end);
        let (before, cutter) = cut(sizes, &tokens[..stop], &[turn_end]);
        let rest = &tokens[stop - cutter.open_tokens()..];
        let (after, _) = cut(sizes, rest, &[]);
        let (whole, _) = cut(sizes, &tokens, &[turn_end]);
        assert_eq!([before, after].concat(), whole, "seed {seed}, {sizes:?}");
    }
}

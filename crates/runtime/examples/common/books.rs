//! Books of the evaluation data.

use crate::common::{path, records};

/// The text of a book of the evaluation data.
pub(crate) fn book(id: &str) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Book {
        id: String,
        title: String,
        text: String,
    }
    let data = path("EVERSTREAM_TEST_DATA")?;
    for file in ["books-nltk-gutenberg.jsonl.gz", "books-gitenberg-1.jsonl.gz"] {
        let books: Vec<Book> = records(&data.join(file))?;
        if let Some(book) = books.into_iter().find(|b| b.id == id || b.title == id) {
            return Ok(book.text);
        }
    }
    anyhow::bail!("no book {id:?} in {}", data.display())
}

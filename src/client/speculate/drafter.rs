//! A small model that this process holds, and what it takes for the next token of a text. Reading a prompt takes it a while,
//! so it does that in the background and is asked for nothing before it has come to the end. How often it is right, and
//! which of its guesses are worth their time, it does not know.

use tokio::sync::oneshot;

use crate::{
    client::local::{LocalError, LocalModel, LocalSession},
    task::Tasks,
};

/// Tokens that are read on the way to a guess; more are read in the background.
const CATCH_UP: usize = 16;
/// Tokens that are read at once: a session of another text waits so long for its guesses.
const AT_ONCE: usize = 128;

/// Where drafters come from. Clones share the model.
#[derive(Clone, Debug)]
pub(in crate::client) struct Drafts {
    model: LocalModel,
    tasks: Tasks,
}

impl Drafts {
    /// The tasks are those that may read in the background.
    pub(in crate::client) fn new(model: LocalModel, tasks: Tasks) -> Self {
        Self { model, tasks }
    }

    /// A drafter of a text of at most `max_length` tokens, which bounds its memory.
    pub(in crate::client) fn drafter(&self, max_length: usize) -> Drafter {
        Drafter {
            drafts: self.clone(),
            max_length,
            reader: None,
            reading: None,
        }
    }
}

/// A small model on its way through one text.
#[derive(Debug)]
pub(in crate::client) struct Drafter {
    drafts: Drafts,
    max_length: usize,
    /// `None` before the beginning, while it reads, and after it was not waited for.
    reader: Option<Reader>,
    /// Brings the reader back from the background.
    reading: Option<oneshot::Receiver<Result<Reader, LocalError>>>,
}

/// A session, and the tokens that it has read.
#[derive(Debug)]
struct Reader {
    session: LocalSession,
    held: Vec<u32>,
}

impl Drafter {
    /// Whether it has read nearly all of `tokens`. If not it goes on reading, without being waited for.
    ///
    /// # Errors
    /// A defect; it is of no more use.
    pub(super) fn read(&mut self, tokens: &[u32]) -> Result<bool, LocalError> {
        if let Some(reading) = &mut self.reading {
            match reading.try_recv() {
                Ok(outcome) => self.take_in(outcome)?,
                Err(oneshot::error::TryRecvError::Empty) => return Ok(false),
                Err(oneshot::error::TryRecvError::Closed) => return Err(LocalError::Ended),
            }
        }
        let mut reader = self.reader.take().unwrap_or_else(|| self.begin());
        if reader.unread(tokens).len() <= CATCH_UP {
            self.reader = Some(reader);
            return Ok(true);
        }
        let (mut reply, reading) = oneshot::channel();
        let tokens = tokens.to_vec();
        self.drafts.tasks.spawn_until_stopped("draft model reads", async move {
            let read = async {
                let outcome = reader.read(&tokens).await;
                outcome.map(|()| reader)
            };
            tokio::select! {
                outcome = read => drop(reply.send(outcome)),
                () = reply.closed() => {}
            }
        });
        self.reading = Some(reading);
        Ok(false)
    }

    /// Waits until it has read nearly all of `tokens`.
    ///
    /// # Errors
    /// As [`Drafter::read`].
    pub(super) async fn catch_up(&mut self, tokens: &[u32]) -> Result<(), LocalError> {
        while !self.read(tokens)? {
            if let Some(reading) = &mut self.reading {
                let outcome = reading.await;
                self.take_in(outcome.unwrap_or(Err(LocalError::Ended)))?;
            }
        }
        Ok(())
    }

    /// The scores of all tokens after `tokens`, most of which it should have read.
    ///
    /// # Errors
    /// A defect; it is of no more use.
    ///
    /// # Cancel safety
    /// After the future was dropped it begins anew.
    pub(super) async fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, LocalError> {
        let mut reader = self.reader.take().unwrap_or_else(|| self.begin());
        let logits = reader.next(tokens).await?;
        self.reader = Some(reader);
        Ok(logits)
    }

    fn begin(&self) -> Reader {
        Reader {
            session: self.drafts.model.session(self.max_length),
            held: Vec::new(),
        }
    }

    fn take_in(&mut self, outcome: Result<Reader, LocalError>) -> Result<(), LocalError> {
        self.reading = None;
        self.reader = Some(outcome?);
        Ok(())
    }
}

impl Reader {
    /// Forgets what is not in `tokens`, and says what of them it has not read; the last one in any case.
    fn unread<'a>(&mut self, tokens: &'a [u32]) -> &'a [u32] {
        let common = self.held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let common = common.min(tokens.len().saturating_sub(1));
        self.held.truncate(common);
        self.session.rewind(common);
        &tokens[common..]
    }

    /// Reads all but the last of `tokens`.
    async fn read(&mut self, tokens: &[u32]) -> Result<(), LocalError> {
        let Some((_, unread)) = self.unread(tokens).split_last() else {
            return Ok(());
        };
        for chunk in unread.chunks(AT_ONCE) {
            self.session.feed(chunk).await?;
            self.held.extend(chunk);
        }
        Ok(())
    }

    async fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, LocalError> {
        let unread = self.unread(tokens);
        let logits = self.session.next(unread).await?;
        self.held.extend(unread);
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::local::LocalOptions,
        model::{HubOptions, ModelSource, testing::engine},
    };

    fn drafts() -> Drafts {
        let source = ModelSource::resolve("demo", &HubOptions::from_variables(|_| None)).unwrap();
        let model = LocalModel::load(&source, &engine(), &LocalOptions::default()).unwrap();
        Drafts::new(model, Tasks::new())
    }

    fn text(n: usize) -> Vec<u32> {
        (0..n as u32).map(|at| 3 + at * 37 % 500).collect()
    }

    async fn expected(drafts: &Drafts, tokens: &[u32]) -> Vec<f32> {
        drafts.model.session(tokens.len()).next(tokens).await.unwrap()
    }

    fn held(drafter: &Drafter) -> usize {
        drafter.reader.as_ref().unwrap().held.len()
    }

    #[tokio::test]
    async fn long_texts_are_read_in_the_background_and_short_ones_on_the_way() {
        let drafts = drafts();
        let tokens = text(AT_ONCE + 4);
        let mut drafter = drafts.drafter(200);
        assert!(drafter.read(&tokens[..CATCH_UP]).unwrap());
        assert!(!drafter.read(&tokens).unwrap());
        drafter.catch_up(&tokens).await.unwrap();
        assert_eq!(held(&drafter), tokens.len() - 1);
        assert!(drafter.read(&tokens).unwrap());
        let found = drafter.next(&tokens).await.unwrap();
        assert_eq!(found, expected(&drafts, &tokens).await);
    }

    #[tokio::test]
    async fn what_a_text_has_in_common_with_the_one_before_is_not_read_again() {
        let drafts = drafts();
        let tokens = text(60);
        let mut drafter = drafts.drafter(100);
        drafter.catch_up(&tokens).await.unwrap();
        drafter.next(&tokens).await.unwrap();
        assert_eq!(held(&drafter), 60);
        // Guesses were wrong from here on.
        let other = [&tokens[..50], &[7, 8, 9]].concat();
        assert!(drafter.read(&other).unwrap());
        assert_eq!(held(&drafter), 50);
        assert_eq!(drafter.next(&other).await.unwrap(), expected(&drafts, &other).await);
        // The same again: only the last token goes through once more.
        assert_eq!(drafter.next(&other).await.unwrap(), expected(&drafts, &other).await);
        // Another text altogether.
        let other = vec![5; 30];
        drafter.catch_up(&other).await.unwrap();
        assert_eq!(drafter.next(&other).await.unwrap(), expected(&drafts, &other).await);
    }

    #[tokio::test]
    async fn a_drafter_that_was_not_waited_for_begins_anew() {
        let drafts = drafts();
        let tokens = text(40);
        let mut drafter = drafts.drafter(50);
        drafter.catch_up(&tokens).await.unwrap();
        {
            let mut next = std::pin::pin!(drafter.next(&tokens));
            assert!(futures::poll!(next.as_mut()).is_pending());
        }
        assert!(!drafter.read(&tokens).unwrap());
        drafter.catch_up(&tokens).await.unwrap();
        assert_eq!(drafter.next(&tokens).await.unwrap(), expected(&drafts, &tokens).await);
    }

    #[tokio::test]
    async fn a_text_that_is_too_long_is_an_error() {
        let mut drafter = drafts().drafter(20);
        assert!(drafter.next(&text(21)).await.is_err());
        assert!(drafter.catch_up(&text(40)).await.is_err());
    }
}

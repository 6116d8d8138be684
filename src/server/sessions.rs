//! The open sessions by id, so that a push finds the session it is for. It holds no cache and no position.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sepal_protocol::proto;
use tokio::sync::mpsc;

use super::error::RequestError;

/// Pushed steps that may wait for one session. A correct chain has one in flight; more would be somebody's mistake.
const PENDING_PUSHES: usize = 4;

type Inboxes = Arc<Mutex<HashMap<String, mpsc::Sender<proto::ExpertRequest>>>>;

/// All open sessions of one server. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    inboxes: Inboxes,
}

/// One session's place in the registry; dropping it frees the id.
#[derive(Debug)]
pub(crate) struct Registration {
    id: String,
    inbox: mpsc::Receiver<proto::ExpertRequest>,
    inboxes: Inboxes,
}

impl Sessions {
    /// Takes an id for a session.
    ///
    /// # Errors
    /// When an open session has it.
    pub(crate) fn register(&self, id: String) -> Result<Registration, RequestError> {
        let mut inboxes = lock(&self.inboxes);
        if inboxes.contains_key(&id) {
            return Err(RequestError::SessionIdTaken { id });
        }
        let (sender, inbox) = mpsc::channel(PENDING_PUSHES);
        inboxes.insert(id.clone(), sender);
        Ok(Registration {
            id,
            inbox,
            inboxes: self.inboxes.clone(),
        })
    }

    /// Hands a pushed step to its session. Returns whether anybody took it: a push for an unknown session, or for one
    /// with too many waiting, is dropped, because the client sends the same step itself.
    pub(crate) fn deliver(&self, id: &str, request: proto::ExpertRequest) -> bool {
        let inbox = lock(&self.inboxes).get(id).cloned();
        inbox.is_some_and(|inbox| inbox.try_send(request).is_ok())
    }
}

impl Registration {
    /// The next pushed step.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn recv(&mut self) -> Option<proto::ExpertRequest> {
        self.inbox.recv().await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.inboxes).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_push_reaches_its_session_and_an_id_is_free_again_after_the_end() {
        let sessions = Sessions::default();
        let mut session = sessions.register("a".into()).unwrap();
        let error = sessions.register("a".into()).unwrap_err();
        assert_eq!(error.to_string(), "session id a is not unique");
        let request = proto::ExpertRequest {
            uid: "P.0".into(),
            ..Default::default()
        };
        assert!(sessions.deliver("a", request.clone()));
        assert!(!sessions.deliver("b", request.clone()));
        assert_eq!(session.recv().await, Some(request.clone()));
        drop(session);
        assert!(!sessions.deliver("a", request));
        assert!(sessions.register("a".into()).is_ok());
    }

    #[tokio::test]
    async fn pushes_for_one_session_are_bounded() {
        let sessions = Sessions::default();
        let _session = sessions.register("a".into()).unwrap();
        let delivered = (0..100)
            .filter(|_| sessions.deliver("a", proto::ExpertRequest::default()))
            .count();
        assert_eq!(delivered, PENDING_PUSHES);
    }
}

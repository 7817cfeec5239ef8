//! What the edge calls: the server that leads, or the answers of a standby until there is one.

#[cfg(feature = "db")]
use super::standby::Standby;
use crate::server::answers;
use crate::server::api::Admission;
use crate::server::http::{
    Answer, ConnectionId, Decision, Refused, Request, Responder, Served, Service,
};
use crate::server::setup::Running;
use std::sync::{Arc, OnceLock};

/// The service of a server, whatever it is at the moment.
pub struct Front {
    /// Set once: who has lost the lead starts anew.
    leader: OnceLock<Running>,
    #[cfg(feature = "db")]
    standby: Option<Arc<Standby>>,
}

impl Front {
    /// Of a server that leads from its start.
    pub fn leading(running: Running) -> Front {
        Front {
            leader: OnceLock::from(running),
            #[cfg(feature = "db")]
            standby: None,
        }
    }

    /// Of one of several servers.
    #[cfg(feature = "db")]
    pub fn standing_by(standby: Arc<Standby>) -> Front {
        Front {
            leader: OnceLock::new(),
            standby: Some(standby),
        }
    }

    /// What answers from now on.
    #[cfg(feature = "db")]
    pub fn lead(&self, running: Running) -> &Running {
        self.leader.get_or_init(|| running)
    }

    /// What a standby answers, for one of several servers.
    #[cfg(feature = "db")]
    pub fn standby(&self) -> Option<&Arc<Standby>> {
        self.standby.as_ref()
    }

    /// The server, if it leads.
    pub fn leader(&self) -> Option<&Running> {
        self.leader.get()
    }
}

impl Service for Front {
    type Admission = Admission;

    fn admit(self: &Arc<Self>, request: &mut Request) -> Result<Decision<Admission>, Answer> {
        match self.leader() {
            Some(running) => {
                #[cfg(feature = "db")]
                if let Some(standby) = &self.standby {
                    standby.find_caller(request);
                }
                running.server.admit(request)
            }
            None => {
                #[cfg(feature = "db")]
                if let Some(standby) = &self.standby {
                    return standby.decide(request);
                }
                Err(self.answer_of_standby())
            }
        }
    }

    fn serve(
        self: &Arc<Self>,
        request: Request,
        admission: Admission,
        responder: Responder,
    ) -> Served {
        match self.leader() {
            Some(running) => running.server.serve(request, admission, responder),
            // Only a leader lets requests in.
            None => {
                responder.answer(self.answer_of_standby());
                Served::Answered
            }
        }
    }

    fn refuse(self: &Arc<Self>, refused: &Refused, of: Option<(&Request, &Admission)>) -> Answer {
        // A request that was passed on, perhaps before this server has taken the lead: the leader is gone, and another one
        // leads soon.
        if refused.status == 502 {
            return answers::ask_another_with_care(&refused.msg);
        }
        match self.leader() {
            Some(running) => running.server.refuse(refused, of),
            None => answers::error(refused.status, &refused.msg),
        }
    }

    fn abandoned(&self, connection: ConnectionId) {
        if let Some(running) = self.leader() {
            running.server.abandoned(connection);
        }
    }

    fn stamp(&self) -> Result<Option<Arc<str>>, Answer> {
        match self.leader() {
            Some(running) => running.server.stamp(),
            None => Ok(None),
        }
    }
}

impl Front {
    fn answer_of_standby(&self) -> Answer {
        #[cfg(feature = "db")]
        if let Some(standby) = &self.standby {
            return standby.hint();
        }
        answers::error(503, "this server has not started yet")
    }
}

//! Records that members write to Kafka: requests on the lanes, updates on `recall-updates`.

use bytes::Bytes;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::trigger::Request;

/// The record of a request on its lane, keyed by the user.
pub fn request_record(topics: &Topics, request: &Request) -> Outgoing {
    Outgoing {
        topic: topics.lane(request.lane),
        key: Some(Bytes::copy_from_slice(request.user.0.as_bytes())),
        value: Some(Bytes::from(
            serde_json::to_vec(request).expect("a request is plain data"),
        )),
        headers: Vec::new(),
        time: None,
    }
}

/// The record of an update on `recall-updates`, keyed `ns/user`; without a value it deletes the user's record.
pub fn update_record(topics: &Topics, ns: &str, user: &UserId, value: Option<String>) -> Outgoing {
    Outgoing {
        topic: topics.recall_updates.clone(),
        key: Some(Bytes::from(format!("{ns}/{user}"))),
        value: value.map(Bytes::from),
        headers: Vec::new(),
        time: None,
    }
}

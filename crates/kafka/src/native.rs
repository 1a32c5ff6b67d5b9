//! Calls that rdkafka's safe interface lacks: headers whose names are not UTF-8, watermarks that are known already, and a
//! new login of a running client.
//!
//! The only `unsafe` of this crate. Invariant: no result points into librdkafka's memory; one borrowed message would
//! keep the whole fetch response that it came in.

use std::ffi::{CStr, CString};
use std::ptr;

use bytes::Bytes;
use rdkafka::ClientContext;
use rdkafka::Message;
use rdkafka::bindings as raw;
use rdkafka::client::Client;
use rdkafka::message::BorrowedMessage;

use nearshore_core::user::record::{Offset, Partition, Position, Record, Timestamp};

/// A copy of the message; its partition is shared, not copied.
pub(super) fn copy(message: &BorrowedMessage<'_>, partition: &Partition) -> Record {
    Record {
        position: Position {
            partition: partition.clone(),
            offset: Offset(message.offset()),
        },
        // A time before 1970, or none, is -1: decoding rejects it, as every time outside 2000-2100.
        time: Timestamp(message.timestamp().to_millis().unwrap_or(-1)),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers(message),
    }
}

/// Headers in their order. rdkafka's own iterator panics on a name that is not UTF-8, which any producer can write.
/// Here such bytes become U+FFFD. A null value becomes an empty one.
fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, Bytes)> {
    let mut list = ptr::null_mut();
    // SAFETY: the message outlives this function, and the header list belongs to the message.
    let found = unsafe { raw::rd_kafka_message_headers(message.ptr(), &mut list) };
    if found != raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return Vec::new();
    }
    let mut headers = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `list` is valid as above; an index past the end is answered by an error.
        let found = unsafe {
            raw::rd_kafka_header_get_all(list, headers.len(), &mut name, &mut value, &mut size)
        };
        if found != raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return headers;
        }
        // SAFETY: librdkafka ends names with a zero byte and keeps both alive with the message.
        let (name, value) = unsafe {
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            let value = match value.is_null() {
                true => Bytes::new(),
                false => Bytes::copy_from_slice(std::slice::from_raw_parts(value.cast(), size)),
            };
            (name, value)
        };
        headers.push((name, value));
    }
}

/// The partition's first offset as last queried for librdkafka's statistics, and its end offset of the last fetch
/// response. Sends no request.
pub(super) fn known<C: ClientContext>(
    client: &Client<C>,
    partition: &Partition,
) -> (Option<Offset>, Option<Offset>) {
    let Ok(topic) = CString::new(&*partition.topic) else {
        return (None, None);
    };
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the topic ends with a zero byte, and both results are written before return, or not
    // at all.
    let found = unsafe {
        raw::rd_kafka_get_watermark_offsets(
            client.native_ptr(),
            topic.as_ptr(),
            partition.number,
            &mut low,
            &mut high,
        )
    };
    let answered = found == raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // A negative offset means not known yet.
    let known = |at: i64| (answered && at >= 0).then_some(Offset(at));
    (known(low), known(high))
}

/// Sets the user and the password by which the client logs in at its next connection.
pub(super) fn set_login<C: ClientContext>(
    client: &Client<C>,
    (user, password): &(String, String),
) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "it has a zero byte".to_owned());
    let (user, password) = (text(user)?, text(password)?);
    // SAFETY: the client is alive, both texts end with a zero byte, and librdkafka copies them.
    let error = unsafe {
        raw::rd_kafka_sasl_set_credentials(client.native_ptr(), user.as_ptr(), password.as_ptr())
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is not null, its text lives until it is destroyed, and that happens once.
    unsafe {
        let text = CStr::from_ptr(raw::rd_kafka_error_string(error));
        let text = text.to_string_lossy().into_owned();
        raw::rd_kafka_error_destroy(error);
        Err(text)
    }
}

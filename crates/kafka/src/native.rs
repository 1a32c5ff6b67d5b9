//! Calls that rdkafka's safe interface lacks: headers whose names are not UTF-8, watermarks that are known already, a
//! new login of a running client, what a client may do, and the members of a group.
//!
//! The only `unsafe` of this crate. Invariant: no result points into librdkafka's memory; one borrowed message would
//! keep the whole fetch response that it came in.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::ClientContext;
use rdkafka::Message;
use rdkafka::bindings as raw;
use rdkafka::client::Client;
use rdkafka::message::BorrowedMessage;

use super::oauth::Token;
use super::rights::Operation;
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

/// Gives the client a token for its next logins by OAUTHBEARER.
pub(super) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &Token,
    extensions: &[(String, String)],
) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "it has a zero byte".to_owned());
    let (value, principal) = (text(&token.value)?, text(&token.principal)?);
    let pairs = extensions.iter().flat_map(|(name, value)| [name, value]);
    let owned = pairs.map(|it| text(it)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = owned.iter().map(|it| it.as_ptr()).collect();
    let mut reason: [c_char; 512] = [0; 512];
    // SAFETY: the client is alive, all texts end with a zero byte and are copied, and the reason ends with one within
    // its length.
    let found = unsafe {
        let found = raw::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.until,
            principal.as_ptr(),
            pointers.as_mut_ptr(),
            pointers.len(),
            reason.as_mut_ptr(),
            reason.len(),
        );
        found == raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    };
    match found {
        true => Ok(()),
        // SAFETY: as above.
        false => Err(unsafe { text_of(reason.as_ptr()) }),
    }
}

/// What a client asks its rights on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Topic,
    Group,
}

/// The operations that the client may do on each of these, by name (KIP-430); `None` where the broker does not say, as
/// for a topic that does not exist. A refusal to describe is an empty set.
///
/// # Errors
///
/// The broker's or librdkafka's reason, if there is no answer at all within `limit`.
pub(super) fn operations<C: ClientContext>(
    client: &Client<C>,
    resource: Resource,
    names: &[String],
    limit: Duration,
) -> Result<BTreeMap<String, Option<BTreeSet<Operation>>>, String> {
    let read = |event| {
        let mut found = BTreeMap::new();
        // SAFETY: `described` calls this with the answer to a description of this kind of resource.
        unsafe {
            match resource {
                Resource::Topic => {
                    for one in topics(event) {
                        let name = raw::rd_kafka_TopicDescription_name(one);
                        let error = raw::rd_kafka_TopicDescription_error(one);
                        let mut n = 0;
                        let all = raw::rd_kafka_TopicDescription_authorized_operations(one, &mut n);
                        found.insert(text_of(name), permitted(error, all, n));
                    }
                }
                Resource::Group => {
                    for one in groups(event) {
                        let name = raw::rd_kafka_ConsumerGroupDescription_group_id(one);
                        let error = raw::rd_kafka_ConsumerGroupDescription_error(one);
                        let mut n = 0;
                        let all = raw::rd_kafka_ConsumerGroupDescription_authorized_operations(
                            one, &mut n,
                        );
                        found.insert(text_of(name), permitted(error, all, n));
                    }
                }
            }
        }
        found
    };
    described(client, resource, names, limit, true, read)
}

/// Client id and host of each member of a group, of the classic protocol or that of KIP-848; `None` where the broker
/// refuses to say it. A group that does not exist has none.
///
/// # Errors
///
/// As [`operations`].
pub(super) fn members<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    limit: Duration,
) -> Result<Option<Vec<(String, String)>>, String> {
    use raw::rd_kafka_resp_err_t as Code;
    let read = |event| {
        let mut members = Vec::new();
        // SAFETY: `described` calls this with the answer to a description of groups; texts end with a zero byte.
        unsafe {
            for one in groups(event) {
                let error = raw::rd_kafka_ConsumerGroupDescription_error(one);
                match raw::rd_kafka_error_code(error) {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
                    Code::RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND => continue,
                    _ => return None,
                }
                for nth in 0..raw::rd_kafka_ConsumerGroupDescription_member_count(one) {
                    let member = raw::rd_kafka_ConsumerGroupDescription_member(one, nth);
                    members.push((
                        text_of(raw::rd_kafka_MemberDescription_client_id(member)),
                        text_of(raw::rd_kafka_MemberDescription_host(member)),
                    ));
                }
            }
        }
        Some(members)
    };
    let names = [group.to_owned()];
    described(client, Resource::Group, &names, limit, false, read)
}

/// Asks for a description of these and reads the answer; `with_rights` asks for the client's rights, too.
fn described<C: ClientContext, T>(
    client: &Client<C>,
    resource: Resource,
    names: &[String],
    limit: Duration,
    with_rights: bool,
    read: impl FnOnce(*mut raw::rd_kafka_event_t) -> T,
) -> Result<T, String> {
    let owned: Result<Vec<CString>, _> = names.iter().map(|name| CString::new(&**name)).collect();
    let owned = owned.map_err(|_| "a name has a zero byte".to_owned())?;
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let millis = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client and the names outlive this function, each thing that is made here is destroyed once, after
    // its last use, and an event is asked only for the result of its own kind.
    unsafe {
        let rk = client.native_ptr();
        let queue = raw::rd_kafka_queue_new(rk);
        let kind = match resource {
            Resource::Topic => raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            Resource::Group => raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
        };
        let options = raw::rd_kafka_AdminOptions_new(rk, kind);
        raw::rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
        if with_rights {
            let error = raw::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                raw::rd_kafka_error_destroy(error);
            }
        }
        match resource {
            Resource::Topic => {
                let topics = raw::rd_kafka_TopicCollection_of_topic_names(
                    pointers.as_mut_ptr(),
                    names.len(),
                );
                raw::rd_kafka_DescribeTopics(rk, topics, options, queue);
                raw::rd_kafka_TopicCollection_destroy(topics);
            }
            Resource::Group => raw::rd_kafka_DescribeConsumerGroups(
                rk,
                pointers.as_mut_ptr(),
                names.len(),
                options,
                queue,
            ),
        }
        let event = raw::rd_kafka_queue_poll(queue, millis);
        let answer = failure(event).map_or_else(|| Ok(read(event)), Err);
        if !event.is_null() {
            raw::rd_kafka_event_destroy(event);
        }
        raw::rd_kafka_AdminOptions_destroy(options);
        raw::rd_kafka_queue_destroy(queue);
        answer
    }
}

/// Why an event is no answer.
///
/// # Safety
///
/// The event is null or alive.
unsafe fn failure(event: *mut raw::rd_kafka_event_t) -> Option<String> {
    if event.is_null() {
        return Some("no answer in time".into());
    }
    // SAFETY: the event is alive, and so is its text, which ends with a zero byte.
    unsafe {
        let found = raw::rd_kafka_event_error(event);
        let failed = found != raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        failed.then(|| text_of(raw::rd_kafka_event_error_string(event)))
    }
}

/// # Safety
///
/// The event is the answer to a description of topics, and outlives what is returned.
unsafe fn topics(
    event: *mut raw::rd_kafka_event_t,
) -> impl Iterator<Item = *const raw::rd_kafka_TopicDescription_t> {
    let mut count = 0;
    // SAFETY: as above; `count` pointers are at `all`.
    unsafe {
        let result = raw::rd_kafka_event_DescribeTopics_result(event);
        let all = raw::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        (0..count).map(move |nth| *all.add(nth))
    }
}

/// # Safety
///
/// The event is the answer to a description of groups, and outlives what is returned.
unsafe fn groups(
    event: *mut raw::rd_kafka_event_t,
) -> impl Iterator<Item = *const raw::rd_kafka_ConsumerGroupDescription_t> {
    let mut count = 0;
    // SAFETY: as above; `count` pointers are at `all`.
    unsafe {
        let result = raw::rd_kafka_event_DescribeConsumerGroups_result(event);
        let all = raw::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
        (0..count).map(move |nth| *all.add(nth))
    }
}

/// # Safety
///
/// The text ends with a zero byte.
unsafe fn text_of(text: *const c_char) -> String {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text).to_string_lossy().into_owned() }
}

/// # Safety
///
/// The error is null or alive, and `n` operations are at `all`, which may be null.
unsafe fn permitted(
    error: *const raw::rd_kafka_error_t,
    all: *const raw::rd_kafka_AclOperation_t,
    n: usize,
) -> Option<BTreeSet<Operation>> {
    use raw::rd_kafka_AclOperation_t as Native;
    use raw::rd_kafka_resp_err_t as Code;
    // SAFETY: as above; the code of no error is that of success.
    let (code, all) = unsafe {
        let all = match all.is_null() {
            true => &[][..],
            false => std::slice::from_raw_parts(all, n),
        };
        (raw::rd_kafka_error_code(error), all)
    };
    match code {
        Code::RD_KAFKA_RESP_ERR_NO_ERROR if n > 0 => {}
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
        | Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED => return Some(BTreeSet::new()),
        _ => return None,
    }
    let known = all.iter().filter_map(|operation| match operation {
        Native::RD_KAFKA_ACL_OPERATION_READ => Some(Operation::Read),
        Native::RD_KAFKA_ACL_OPERATION_WRITE => Some(Operation::Write),
        Native::RD_KAFKA_ACL_OPERATION_DESCRIBE => Some(Operation::Describe),
        Native::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS => Some(Operation::DescribeConfigs),
        _ => None,
    });
    Some(known.collect())
}

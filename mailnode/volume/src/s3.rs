//! The operations of S3 that backups use, on a [`Store`].

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use hyper::StatusCode;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto::*};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{
    REGION, listing,
    names::Name,
    store::{Draft, Facts, Store, StoreError, failed},
    uploads::{MAX_PARTS, Part},
};

/// Objects that are written at the same time.
const MAX_WRITES: usize = 32;
/// Listings at the same time.
const MAX_LISTINGS: usize = 4;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(30);
/// How long the next bytes of a body may take.
const IDLE: Duration = Duration::from_secs(60);
/// So much of a body is gathered before it is written.
const WRITE_BYTES: usize = 256 << 10;
/// So much of an object is read at a time.
const READ_BYTES: usize = 128 << 10;
/// Names in a page of a listing, as in S3.
const MAX_KEYS: usize = 1_000;
/// Objects that one request deletes, as in S3.
const MAX_DELETES: usize = 1_000;

/// One bucket.
pub(crate) struct Bucket {
    name: String,
    store: Arc<Store>,
    writes: Semaphore,
    listings: Semaphore,
}

impl From<StoreError> for S3Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound => S3ErrorCode::NoSuchKey,
            StoreError::Exists => S3ErrorCode::PreconditionFailed,
            StoreError::NoUpload => S3ErrorCode::NoSuchUpload,
            StoreError::BadPart(_) => S3ErrorCode::InvalidPart,
            StoreError::TooManyUploads => S3ErrorCode::SlowDown,
            StoreError::NoPlace(_) => S3ErrorCode::InvalidArgument,
            StoreError::Full => S3ErrorCode::Custom("InsufficientStorage".into()),
            StoreError::Failed { .. } => S3ErrorCode::InternalError,
        };
        if matches!(error, StoreError::Full | StoreError::Failed { .. }) {
            tracing::error!(%error, "a request failed");
        }
        let is_full = matches!(error, StoreError::Full);
        let mut told = Self::with_message(code, error.to_string());
        if is_full {
            // RFC 4918 11.5
            told.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
        }
        told
    }
}

fn refuse(code: S3ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

fn name(key: &str) -> S3Result<Name> {
    Name::parse(key).ok_or_else(|| {
        let text = "names of objects have letters, digits and -_.=+@,:~()! in segments of at most 255 bytes between slashes, 1024 in all, and no segment is . or ..";
        refuse(S3ErrorCode::InvalidArgument, text)
    })
}

/// Whether only a new object is wanted.
fn is_new(if_none_match: Option<&IfNoneMatch>, if_match: Option<&IfMatch>) -> S3Result<bool> {
    match (if_none_match, if_match) {
        (None, None) => Ok(false),
        (Some(ETagCondition::Any), None) => Ok(true),
        _ => Err(refuse(
            S3ErrorCode::NotImplemented,
            "of conditions for writing only If-None-Match: * is known",
        )),
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> S3Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(refuse(S3ErrorCode::InternalError, "the request broke off; see the log of the server")),
    }
}

async fn turn(turns: &Semaphore) -> S3Result<SemaphorePermit<'_>> {
    let Ok(Ok(permit)) = timeout(TURN, turns.acquire()).await else {
        return Err(refuse(S3ErrorCode::SlowDown, "too much is asked at the same time; try again"));
    };
    Ok(permit)
}

/// Writes a body to a draft.
async fn receive(mut draft: Draft, body: Option<StreamingBlob>, length: Option<i64>) -> S3Result<Draft> {
    let incomplete = |text: String| refuse(S3ErrorCode::IncompleteBody, text);
    let Some(mut body) = body else { return Ok(draft) };
    let (mut gathered, mut pending, mut total) = (Vec::new(), 0, 0u64);
    loop {
        let next = timeout(IDLE, body.next());
        let next = next.await.map_err(|_| refuse(S3ErrorCode::RequestTimeout, "the body does not go on"))?;
        let is_last = next.is_none();
        if let Some(bytes) = next {
            // Too short as well, and one that is not what was signed.
            let bytes: Bytes =
                bytes.map_err(|error| incomplete(format!("the body cannot be read: {error}")))?;
            pending += bytes.len();
            total += bytes.len() as u64;
            gathered.push(bytes);
        }
        if pending >= WRITE_BYTES || is_last {
            let chunks = std::mem::take(&mut gathered);
            pending = 0;
            draft = blocking(move || {
                for chunk in chunks {
                    io::Write::write_all(&mut draft.file, &chunk).map_err(failed("write an object"))?;
                }
                Ok(draft)
            })
            .await?;
        }
        if is_last {
            let is_whole = length.is_none_or(|length| u64::try_from(length) == Ok(total));
            return if is_whole {
                Ok(draft)
            } else {
                Err(incomplete("the body has another length".to_owned()))
            };
        }
    }
}

/// The bytes of a part of a file.
fn send(file: File, start: u64, end: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    let file = Arc::new(file);
    let chunks = (start..end).step_by(READ_BYTES);
    futures::stream::iter(chunks).then(move |at| {
        let file = file.clone();
        let length = usize::try_from(end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            Ok(Bytes::from(bytes))
        });
        async { read.await.unwrap_or_else(|error| Err(io::Error::other(error))) }
    })
}

/// What a reader may demand of the object. RFC 9110 13.1
fn check(facts: &Facts, if_match: Option<&IfMatch>, if_none_match: Option<&IfNoneMatch>) -> S3Result<()> {
    let is_it = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == facts.etag,
    };
    if if_match.is_some_and(|condition| !is_it(condition)) {
        return Err(refuse(S3ErrorCode::PreconditionFailed, "the object is another one by now"));
    }
    if if_none_match.is_some_and(is_it) {
        return Err(S3Error::new(S3ErrorCode::NotModified));
    }
    Ok(())
}

fn etag(facts: &Facts) -> Option<ETag> {
    Some(ETag::Strong(facts.etag.clone()))
}

fn length(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

impl Bucket {
    pub(crate) fn new(name: String, store: Arc<Store>) -> Self {
        let (writes, listings) = (Semaphore::new(MAX_WRITES), Semaphore::new(MAX_LISTINGS));
        Self { name, store, writes, listings }
    }

    /// Whether a request is for this bucket.
    fn admit<T>(&self, request: &S3Request<T>, bucket: &str) -> S3Result<()> {
        if request.region.as_ref().is_none_or(|region| region.as_str() != REGION) {
            let text = format!("the region is {REGION}");
            return Err(refuse(S3ErrorCode::AuthorizationHeaderMalformed, text));
        }
        if bucket != self.name {
            return Err(refuse(S3ErrorCode::NoSuchBucket, format!("there is only the bucket {}", self.name)));
        }
        Ok(())
    }

    fn open(&self, key: &str) -> S3Result<impl Future<Output = S3Result<(File, Facts)>> + use<>> {
        let (store, name) = (self.store.clone(), name(key)?);
        Ok(blocking(move || store.open_object(&name)))
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let name = name(&input.key)?;
        let new = is_new(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        let _turn = turn(&self.writes).await?;
        let store = self.store.clone();
        let draft = blocking(move || store.begin()).await?;
        let draft = receive(draft, input.body, input.content_length).await?;
        let store = self.store.clone();
        let facts = blocking(move || store.publish(draft, &name, new)).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: etag(&facts), ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let (file, facts) = self.open(&input.key)?.await?;
        check(&facts, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let range = match input.range {
            Some(range) => range.check(facts.bytes).map_err(|_| {
                refuse(S3ErrorCode::InvalidRange, format!("the object has {} bytes", facts.bytes))
            })?,
            None => 0..facts.bytes,
        };
        let content_range = input
            .range
            .map(|_| format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), facts.bytes));
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(send(file, range.start, range.end))),
            content_length: length(range.end - range.start),
            content_range,
            accept_ranges: Some("bytes".to_owned()),
            e_tag: etag(&facts),
            last_modified: Some(facts.modified.into()),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let (_, facts) = self.open(&input.key)?.await?;
        check(&facts, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(facts.bytes),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: etag(&facts),
            last_modified: Some(facts.modified.into()),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let (store, name) = (self.store.clone(), name(&request.input.key)?);
        let _turn = turn(&self.writes).await?;
        blocking(move || store.remove(&name)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let Delete { objects, quiet } = request.input.delete;
        if objects.len() > MAX_DELETES {
            return Err(refuse(S3ErrorCode::MalformedXML, "at most 1000 objects are deleted at once"));
        }
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        let _turn = turn(&self.writes).await?;
        for ObjectIdentifier { key, .. } in objects {
            let store = self.store.clone();
            let removed = match name(&key) {
                Ok(name) => blocking(move || store.remove(&name)).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => deleted.push(DeletedObject { key: Some(key), ..Default::default() }),
                Err(error) => errors.push(s3s::dto::Error {
                    code: Some(error.code().as_str().to_owned()),
                    message: error.message().map(str::to_owned),
                    key: Some(key),
                    ..Default::default()
                }),
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (quiet != Some(true)).then_some(deleted),
            errors: Some(errors),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        if input.delimiter.as_ref().is_some_and(|delimiter| !delimiter.is_empty()) {
            return Err(refuse(S3ErrorCode::NotImplemented, "listings have no delimiter; list all names"));
        }
        let limit = input.max_keys.and_then(|keys| usize::try_from(keys).ok());
        let limit = limit.unwrap_or(MAX_KEYS).clamp(1, MAX_KEYS);
        // A page begins behind the last name of the one before.
        let after =
            input.continuation_token.clone().or_else(|| input.start_after.clone()).unwrap_or_default();
        let prefix = input.prefix.clone().unwrap_or_default();
        let _turn = turn(&self.listings).await?;
        let store = self.store.clone();
        let page = blocking(move || {
            listing::page(store.bucket(), &prefix, &after, limit).map_err(failed("list objects"))
        });
        let page = page.await?;
        let next = page.objects.last().filter(|_| page.more).map(|(name, _)| name.clone());
        let object = |(name, facts): (String, Facts)| Object {
            e_tag: etag(&facts),
            key: Some(name),
            last_modified: Some(facts.modified.into()),
            size: length(facts.bytes),
            ..Default::default()
        };
        let contents: Vec<_> = page.objects.into_iter().map(object).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            max_keys: i32::try_from(limit).ok(),
            key_count: i32::try_from(contents.len()).ok(),
            is_truncated: Some(page.more),
            continuation_token: input.continuation_token,
            next_continuation_token: next,
            start_after: input.start_after,
            contents: Some(contents),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let (store, name) = (self.store.clone(), name(&input.key)?);
        let id = blocking(move || store.begin_upload(&name)).await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let number = u32::try_from(input.part_number).ok().filter(|number| (1..=MAX_PARTS).contains(number));
        let number = number
            .ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "numbers of parts are from 1 to 10000"))?;
        let (name, id) = (name(&input.key)?, input.upload_id);
        let _turn = turn(&self.writes).await?;
        let (store, of, to) = (self.store.clone(), name.clone(), id.clone());
        let draft = blocking(move || store.begin_part(&to, &of)).await?;
        let draft = receive(draft, input.body, input.content_length).await?;
        let store = self.store.clone();
        let facts = blocking(move || store.keep_part(&id, &name, number, draft)).await?;
        Ok(S3Response::new(UploadPartOutput { e_tag: etag(&facts), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let input = request.input;
        let new = is_new(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        let (name, id) = (name(&input.key)?, input.upload_id);
        let listed = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let part = |part: CompletedPart| {
            Some(Part {
                number: u32::try_from(part.part_number?).ok()?,
                etag: part.e_tag?.value().to_owned(),
            })
        };
        let parts: Option<Vec<_>> = listed.into_iter().map(part).collect();
        let parts = parts.filter(|parts| !parts.is_empty() && parts.len() <= MAX_PARTS as usize);
        let parts = parts
            .ok_or_else(|| refuse(S3ErrorCode::MalformedXML, "each part needs its number and its ETag"))?;
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(refuse(S3ErrorCode::InvalidPartOrder, "parts are listed by ascending number"));
        }
        let _turn = turn(&self.writes).await?;
        let store = self.store.clone();
        let facts = blocking(move || store.complete(&id, &name, &parts, new)).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: etag(&facts),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.admit(&request, &request.input.bucket)?;
        let (store, name, id) = (self.store.clone(), name(&request.input.key)?, request.input.upload_id);
        blocking(move || store.abort(&id, &name)).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

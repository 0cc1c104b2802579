//! Raw calls of TiKV's storage service: one thin adapter each.
//!
//! Each takes the deadline from the headers, turns the message into one request of the
//! store, waits, and puts the result where published clients look for it. A client that
//! goes away cancels the handler, and with it the request unless it is proposed already.
//!
//! Elsewhere: messages to requests (`convert`), errors to answers (`refusal`).

pub(crate) mod convert;
pub(crate) mod refusal;

use std::sync::Arc;

use bytes::Bytes;
use strata_proto::kvrpcpb::*;
use strata_proto::stratapb::DataCommand;
use strata_proto::tikvpb::tikv_server::Tikv;
use strata_raftstore::{
    Answer, CommandOutcome, ReadCommand, Request as StoreRequest, RequestBody, StoreHandle,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::config::ServerConfig;
use crate::deadline::request_time;
use crate::metrics::ServerMetrics;
use crate::store_call::{call, unexpected};

use refusal::{Refusal, refuse, refuse_outcome};

/// Serves `tikvpb.Tikv`.
#[derive(Clone)]
pub(crate) struct RawService {
    store: StoreHandle,
    store_id: u64,
    config: ServerConfig,
    max_key_bytes: usize,
    metrics: Arc<ServerMetrics>,
}

impl RawService {
    pub(crate) fn new(
        store: StoreHandle,
        store_id: u64,
        config: ServerConfig,
        max_key_bytes: usize,
        metrics: Arc<ServerMetrics>,
    ) -> Self {
        RawService {
            store,
            store_id,
            config,
            max_key_bytes,
            metrics,
        }
    }

    async fn execute(
        &self,
        metadata: &MetadataMap,
        context: Option<&Context>,
        body: RequestBody,
    ) -> Result<Answer, Refusal> {
        let deadline = self.store.now() + request_time(metadata, &self.config);
        let request = StoreRequest {
            header: convert::header(context, deadline),
            body,
        };
        call(&self.store, request)
            .await
            .map_err(|error| refuse(error, self.store_id))
    }

    async fn read(
        &self,
        metadata: &MetadataMap,
        context: Option<&Context>,
        command: ReadCommand,
    ) -> Result<Answer, Refusal> {
        self.execute(metadata, context, RequestBody::Read(command))
            .await
    }

    /// Executes one command and returns its outcome unless it was refused.
    async fn write(
        &self,
        metadata: &MetadataMap,
        context: Option<&Context>,
        command: DataCommand,
    ) -> Result<CommandOutcome, Refusal> {
        let answer = self
            .execute(metadata, context, RequestBody::Write(vec![command]))
            .await?;
        let Answer::Written(outcomes) = answer else {
            return Err(self.wrong(&answer));
        };
        let Some(outcome) = outcomes.into_iter().next() else {
            return Err(Refusal::text("the store answered without an outcome"));
        };
        let region_id = context.map_or(0, |context| context.region_id);
        match refuse_outcome(outcome.clone(), region_id) {
            Some(refusal) => Err(refusal),
            None => Ok(outcome),
        }
    }

    fn wrong(&self, answer: &Answer) -> Refusal {
        refuse(unexpected(answer), self.store_id)
    }

    fn pairs(&self, answer: Answer) -> Result<Vec<(Bytes, Bytes)>, Refusal> {
        match answer {
            Answer::Pairs(pairs) => Ok(pairs),
            other => Err(self.wrong(&other)),
        }
    }

    async fn get(
        &self,
        metadata: &MetadataMap,
        request: RawGetRequest,
    ) -> Result<RawGetResponse, Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let key = request.key;
        let command = ReadCommand::Get { space, key };
        match self.read(metadata, context, command).await? {
            Answer::Value(value) => Ok(RawGetResponse {
                not_found: value.is_none(),
                value: value.unwrap_or_default(),
                ..Default::default()
            }),
            other => Err(self.wrong(&other)),
        }
    }

    async fn ttl(
        &self,
        metadata: &MetadataMap,
        request: RawGetKeyTtlRequest,
    ) -> Result<RawGetKeyTtlResponse, Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let key = request.key;
        let command = ReadCommand::Ttl { space, key };
        match self.read(metadata, context, command).await? {
            Answer::Ttl(seconds) => Ok(RawGetKeyTtlResponse {
                not_found: seconds.is_none(),
                ttl: seconds.unwrap_or(0),
                ..Default::default()
            }),
            other => Err(self.wrong(&other)),
        }
    }

    async fn batch_get(
        &self,
        metadata: &MetadataMap,
        request: RawBatchGetRequest,
    ) -> Result<Vec<KvPair>, Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let keys = request
            .keys
            .into_iter()
            .filter(|key| convert::can_exist(space, key, self.max_key_bytes))
            .collect();
        let command = ReadCommand::BatchGet { space, keys };
        let answer = self.read(metadata, context, command).await?;
        self.pairs(answer).map(convert::pairs)
    }

    async fn scan(
        &self,
        metadata: &MetadataMap,
        request: RawScanRequest,
    ) -> Result<Vec<KvPair>, Refusal> {
        let context = request.context.as_ref();
        let command = ReadCommand::Scan {
            space: convert::space(context, &request.cf)?,
            start: request.start_key,
            end: request.end_key,
            limit: request.limit,
            key_only: request.key_only,
            reverse: request.reverse,
        };
        let answer = self.read(metadata, context, command).await?;
        self.pairs(answer).map(convert::pairs)
    }

    async fn batch_scan(
        &self,
        metadata: &MetadataMap,
        request: RawBatchScanRequest,
    ) -> Result<Vec<KvPair>, Refusal> {
        let context = request.context.as_ref();
        let command = ReadCommand::BatchScan {
            space: convert::space(context, &request.cf)?,
            ranges: convert::scan_ranges(request.ranges, request.reverse),
            each_limit: request.each_limit,
            key_only: request.key_only,
            reverse: request.reverse,
        };
        let answer = self.read(metadata, context, command).await?;
        self.pairs(answer).map(convert::pairs)
    }

    async fn put(&self, metadata: &MetadataMap, request: RawPutRequest) -> Result<(), Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let put = convert::put(request.key, request.value, request.ttl);
        let command = convert::write(space, vec![put]);
        self.write(metadata, context, command).await.map(|_| ())
    }

    async fn batch_put(
        &self,
        metadata: &MetadataMap,
        request: RawBatchPutRequest,
    ) -> Result<(), Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let puts = convert::batch_put(request.pairs, &request.ttls, request.ttl)?;
        if puts.is_empty() {
            return Ok(());
        }
        let command = convert::write(space, puts);
        self.write(metadata, context, command).await.map(|_| ())
    }

    async fn delete(
        &self,
        metadata: &MetadataMap,
        context: Option<&Context>,
        cf: &str,
        keys: Vec<Bytes>,
    ) -> Result<(), Refusal> {
        let space = convert::space(context, cf)?;
        if keys.is_empty() {
            return Ok(());
        }
        let deletes = keys.into_iter().map(convert::delete).collect();
        let command = convert::write(space, deletes);
        self.write(metadata, context, command).await.map(|_| ())
    }

    async fn delete_range(
        &self,
        metadata: &MetadataMap,
        request: RawDeleteRangeRequest,
    ) -> Result<(), Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, &request.cf)?;
        let command = convert::delete_range(space, request.start_key, request.end_key)?;
        self.write(metadata, context, command).await.map(|_| ())
    }

    async fn swap(
        &self,
        metadata: &MetadataMap,
        mut request: RawCompareAndSwapRequest,
    ) -> Result<RawCompareAndSwapResponse, Refusal> {
        let context = request.context.take();
        let space = convert::space(context.as_ref(), &request.cf)?;
        let command = convert::compare_and_swap(space, request);
        match self.write(metadata, context.as_ref(), command).await? {
            CommandOutcome::CompareAndSwap {
                succeeded,
                previous,
            } => Ok(RawCompareAndSwapResponse {
                succeed: succeeded,
                previous_not_exist: previous.is_none(),
                previous_value: previous.unwrap_or_default(),
                ..Default::default()
            }),
            other => Err(Refusal::text(format!(
                "an outcome of the wrong kind: {other:?}"
            ))),
        }
    }

    async fn checksum(
        &self,
        metadata: &MetadataMap,
        request: RawChecksumRequest,
    ) -> Result<RawChecksumResponse, Refusal> {
        let context = request.context.as_ref();
        let space = convert::space(context, "")?;
        if request.algorithm != ChecksumAlgorithm::Crc64Xor as i32 {
            return Err(Refusal::text(format!(
                "checksum algorithm {} is not served",
                request.algorithm
            )));
        }
        let ranges = convert::scan_ranges(request.ranges, false);
        let command = ReadCommand::Checksum { space, ranges };
        match self.read(metadata, context, command).await? {
            Answer::Checksum {
                crc64,
                pairs,
                bytes,
            } => Ok(RawChecksumResponse {
                checksum: crc64,
                total_kvs: pairs,
                total_bytes: bytes,
                ..Default::default()
            }),
            other => Err(self.wrong(&other)),
        }
    }
}

/// Fills `region_error` and `error` of a response that has both.
macro_rules! with_error_field {
    ($self:ident, $name:literal, $response:ident, $result:expr) => {{
        let timer = $self.metrics.call($name);
        let result = $result;
        timer.finish(result.is_ok());
        Ok(Response::new(result.unwrap_or_else(|refusal: Refusal| {
            let (region_error, error) = refusal.into_fields();
            // Answers of writes have no further field.
            #[allow(clippy::needless_update)]
            $response {
                region_error,
                error,
                ..Default::default()
            }
        })))
    }};
}

/// Fills a response whose only error is `region_error`; other refusals answer no pairs.
macro_rules! with_pairs {
    ($self:ident, $name:literal, $response:ident, $field:ident, $result:expr) => {{
        let timer = $self.metrics.call($name);
        let result = $result;
        timer.finish(result.is_ok());
        Ok(Response::new(match result {
            Ok(pairs) => $response {
                $field: pairs,
                ..Default::default()
            },
            Err(refusal) => $response {
                region_error: Refusal::into_region_error(refusal),
                ..Default::default()
            },
        }))
    }};
}

#[tonic::async_trait]
impl Tikv for RawService {
    async fn raw_get(
        &self,
        request: Request<RawGetRequest>,
    ) -> Result<Response<RawGetResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        with_error_field!(
            self,
            "raw_get",
            RawGetResponse,
            self.get(&metadata, request).await
        )
    }

    async fn raw_batch_get(
        &self,
        request: Request<RawBatchGetRequest>,
    ) -> Result<Response<RawBatchGetResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.batch_get(&metadata, request);
        with_pairs!(
            self,
            "raw_batch_get",
            RawBatchGetResponse,
            pairs,
            result.await
        )
    }

    async fn raw_get_key_ttl(
        &self,
        request: Request<RawGetKeyTtlRequest>,
    ) -> Result<Response<RawGetKeyTtlResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.ttl(&metadata, request);
        with_error_field!(self, "raw_get_key_ttl", RawGetKeyTtlResponse, result.await)
    }

    async fn raw_put(
        &self,
        request: Request<RawPutRequest>,
    ) -> Result<Response<RawPutResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.put(&metadata, request);
        with_error_field!(
            self,
            "raw_put",
            RawPutResponse,
            result.await.map(|()| RawPutResponse::default())
        )
    }

    async fn raw_batch_put(
        &self,
        request: Request<RawBatchPutRequest>,
    ) -> Result<Response<RawBatchPutResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.batch_put(&metadata, request);
        with_error_field!(
            self,
            "raw_batch_put",
            RawBatchPutResponse,
            result.await.map(|()| RawBatchPutResponse::default())
        )
    }

    async fn raw_delete(
        &self,
        request: Request<RawDeleteRequest>,
    ) -> Result<Response<RawDeleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let context = request.context.as_ref();
        let result = self.delete(&metadata, context, &request.cf, vec![request.key]);
        with_error_field!(
            self,
            "raw_delete",
            RawDeleteResponse,
            result.await.map(|()| RawDeleteResponse::default())
        )
    }

    async fn raw_batch_delete(
        &self,
        request: Request<RawBatchDeleteRequest>,
    ) -> Result<Response<RawBatchDeleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let context = request.context.as_ref();
        let result = self.delete(&metadata, context, &request.cf, request.keys);
        with_error_field!(
            self,
            "raw_batch_delete",
            RawBatchDeleteResponse,
            result.await.map(|()| RawBatchDeleteResponse::default())
        )
    }

    async fn raw_delete_range(
        &self,
        request: Request<RawDeleteRangeRequest>,
    ) -> Result<Response<RawDeleteRangeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.delete_range(&metadata, request);
        with_error_field!(
            self,
            "raw_delete_range",
            RawDeleteRangeResponse,
            result.await.map(|()| RawDeleteRangeResponse::default())
        )
    }

    async fn raw_scan(
        &self,
        request: Request<RawScanRequest>,
    ) -> Result<Response<RawScanResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.scan(&metadata, request);
        with_pairs!(self, "raw_scan", RawScanResponse, kvs, result.await)
    }

    async fn raw_batch_scan(
        &self,
        request: Request<RawBatchScanRequest>,
    ) -> Result<Response<RawBatchScanResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.batch_scan(&metadata, request);
        with_pairs!(
            self,
            "raw_batch_scan",
            RawBatchScanResponse,
            kvs,
            result.await
        )
    }

    async fn raw_compare_and_swap(
        &self,
        request: Request<RawCompareAndSwapRequest>,
    ) -> Result<Response<RawCompareAndSwapResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.swap(&metadata, request);
        with_error_field!(
            self,
            "raw_compare_and_swap",
            RawCompareAndSwapResponse,
            result.await
        )
    }

    async fn raw_checksum(
        &self,
        request: Request<RawChecksumRequest>,
    ) -> Result<Response<RawChecksumResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let result = self.checksum(&metadata, request);
        with_error_field!(self, "raw_checksum", RawChecksumResponse, result.await)
    }
}

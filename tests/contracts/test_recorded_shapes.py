"""What every vendor is known to answer when it refuses or fails, and what each shape means to the router.

The shapes were written for this project from the vendors' documentation, clients and bug reports. Each is sent over
HTTP to the vendor's own preset: status, headers and body become kind, scope, delay and what may have been billed.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.contracts.responses import Heard, said

from turnout.request import InferenceRequest
from turnout_workers.providers import Http, ProviderConfig, Secret, build
from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.conformance import always, serving
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, FailureKind, Scope
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.state.store import ObservedLimit

K = FailureKind
ACCOUNT = {K.UNAUTHORIZED, K.BILLING}
MAYBE = {K.SERVER_ERROR, K.TIMED_OUT, K.OFF_SCHEMA}
KEY = "key-of-this-test-0123456789"
PROMPT = 'A prompt of a good length, which\nno error may repeat: not at all, "not" in pieces.'
HTML = "<html><head><title>Bad gateway</title></head><body>cloud</body></html>"


def openai(message: str = "no", type: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def anthropic(type: str, message: str = "no", code: str | None = None) -> dict[str, Any]:
    details = {"details": {"error_code": code}} if code else {}
    return {"type": "error", "error": {"type": type, "message": message, **details}, "request_id": "req_of_body"}


def gemini(status: str, message: str = "no", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": 0, "message": message, "status": status, "details": list(details)}}


DEAR = (
    "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford 12."
)


def router(code: int, message: str = "Provider returned error", **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "metadata": metadata}, "user_id": "user_1"}


def quota(id: str, value: str | None = None) -> dict[str, Any]:
    violation = {"quotaId": id} | ({"quotaValue": value} if value is not None else {})
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def said_by_vllm(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}
DATE = {"date": "Fri, 15 Jan 2027 08:00:00 GMT"}
FREE = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1800000009000"}

# Status, headers, body, kind, and where it isn't the usual: delay, scope.
SHAPES: dict[str, list[tuple[Any, ...]]] = {
    "openai": [
        (401, {}, openai("Incorrect API key provided", "invalid_request_error", "invalid_api_key"), K.UNAUTHORIZED),
        (403, {}, openai("Country, region, or territory not supported", "request_forbidden"), K.FORBIDDEN, None, "a"),
        (403, {}, openai("Project does not have access to model `m`", None, "model_not_found"), K.MODEL_NOT_FOUND),
        (404, {}, openai("No such model", "invalid_request_error", "model_not_found"), K.MODEL_NOT_FOUND),
        (408, {}, openai("timed out"), K.TIMED_OUT),
        (409, {}, openai("conflict"), K.CONFLICT),
        (429, {"retry-after-ms": "500", "retry-after": "1"}, openai("Rate limit", "requests"), K.RATE_LIMITED, 0.5),
        (429, {"retry-after": "20"}, openai("Rate limit", "tokens", "rate_limit_exceeded"), K.RATE_LIMITED, 20),
        (
            429,
            {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1h",
             "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"},
            openai("Rate limit", "tokens"), K.RATE_LIMITED, 360,
        ),
        (429, {}, openai("Rate limit reached. Please try again in 6m0s.", "tokens"), K.RATE_LIMITED, 360),
        (429, {}, openai("Please try again in 812ms. Visit the console", "tokens"), K.RATE_LIMITED, 0.812),
        (429, {}, openai("Request too large for m on tokens per min", "tokens"), K.CONTEXT_LENGTH),
        (429, {}, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), K.BILLING),
        (429, {}, openai("no", "insufficient_quota", "credit_balance_exhausted"), K.BILLING),
        (429, {}, openai("no", None, "project_spend_limit_exceeded"), K.BILLING),
        (400, {}, openai("no", None, "billing_hard_limit_reached"), K.BILLING),
        (400, {}, openai("no", None, "context_length_exceeded"), K.CONTEXT_LENGTH),
        (400, {}, openai("max_tokens is too large: 9. This model supports at most 4"), K.CONTEXT_LENGTH),
        (400, {}, openai("no", None, "content_policy_violation"), K.CONTENT_FILTERED),
        (400, {}, openai("flagged for high-risk activity", "invalid_request", "cyber_policy"), K.CONTENT_FILTERED),
        (400, {}, openai("no", "invalid_request_error", "unsupported_parameter"), K.UNSUPPORTED),
        (400, {}, openai("'temperature' does not support 0.2", None, "unsupported_value"), K.UNSUPPORTED),
        (400, {}, openai("Function tools with reasoning_effort are not supported for m in /v1/c"), K.UNSUPPORTED),
        (400, {}, openai("Invalid schema for response_format 'answer': In context=()"), K.UNSUPPORTED),
        (
            400, {}, openai("You uploaded an unsupported image. Please make sure your image has of one the following "
                            "formats: ['png', 'jpeg', 'gif', 'webp'].", code="invalid_image_format"), K.UNSUPPORTED,
        ),
        (
            400, {}, openai("Invalid 'messages[2]'. Image URLs are only allowed for messages with role 'user', but "
                            "this message with role 'tool' contains an image URL."), K.UNSUPPORTED,
        ),
        (400, {}, openai("Invalid 'messages'", "invalid_request_error"), K.INVALID_REQUEST),
        (400, {"x-should-retry": "true"}, openai("try again", "invalid_request_error"), K.CONFLICT),
        (500, {}, openai("The server had an error", "server_error"), K.SERVER_ERROR),
        (503, {"retry-after": "3"}, openai("no", "server_error", "slow_down"), K.OVERLOADED, 3),
        (200, {}, openai("late trouble", "server_error"), K.SERVER_ERROR),
        (200, {}, openai("late trouble", "invalid_request_error"), K.INVALID_REQUEST),
    ],
    "azure": [
        (401, {}, {"error": {"code": "401", "message": "Access denied due to invalid key"}}, K.UNAUTHORIZED),
        (404, {}, {"error": {"code": "DeploymentNotFound", "message": "no"}}, K.MODEL_NOT_FOUND),
        (429, {}, {"error": {"code": "429", "message": "Please retry after 6 seconds."}}, K.RATE_LIMITED, 6),
        (429, {"retry-after-ms": "1200"}, {"error": {"code": "429", "message": "rate limit"}}, K.RATE_LIMITED, 1.2),
    ],
    "groq": [
        (401, {}, openai("Invalid API Key", "invalid_request_error", "invalid_api_key"), K.UNAUTHORIZED),
        (404, {}, openai("no", "invalid_request_error", "model_not_found"), K.MODEL_NOT_FOUND),
        (413, {}, openai("Request too large for model `m`", "tokens", "rate_limit_exceeded"), K.CONTEXT_LENGTH),
        (429, {"retry-after": "7"}, openai("Rate limit reached", "tokens", "rate_limit_exceeded"), K.RATE_LIMITED, 7),
        (400, {}, openai("no", "invalid_request_error", "model_decommissioned"), K.MODEL_NOT_FOUND),
        (
            400, {}, openai("API access is blocked: your organization reached its spend limit",
                            "invalid_request_error", "blocked_api_access"), K.BILLING,
        ),
        (
            400, {}, openai("Organization has been restricted. Please reach out to support",
                            "invalid_request_error", "organization_restricted"), K.BILLING,
        ),
        (400, {}, openai("Failed to generate JSON", "invalid_request_error", "json_validate_failed"), K.OFF_SCHEMA),
        (400, {}, openai("Failed to call a function", "invalid_request_error", "tool_use_failed"), K.OFF_SCHEMA),
        (400, {}, openai("property 'seed' is unsupported", "invalid_request_error"), K.UNSUPPORTED),
        (400, {}, openai("`reasoning_effort` must be one of `none` or `default`"), K.UNSUPPORTED),
        (400, {}, openai("'reasoning_effort' : value is not one of the allowed values ['none']"), K.UNSUPPORTED),
        (498, {}, openai("capacity exceeded", "internal_server_error"), K.OVERLOADED),
    ],
    "together": [
        (401, {}, openai("Invalid API key provided", "invalid_request_error", "invalid_api_key"), K.UNAUTHORIZED),
        (400, {}, openai("Unable to access non-serverless model m", code="model_not_available"), K.MODEL_NOT_FOUND),
        (402, {}, openai("Credit limit exceeded", "credit_limit"), K.BILLING),
        (422, {}, openai("`inputs` tokens + `max_new_tokens` must be <= 4097"), K.CONTEXT_LENGTH),
        (
            403, {}, openai("Input token count + max_tokens must be less than the context length of the model being "
                            "queried", "invalid_request_error"), K.CONTEXT_LENGTH,
        ),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "4"}, openai("no", "rate"), K.RATE_LIMITED, 4),
        (503, {}, openai("The server is overloaded", "service_unavailable"), K.OVERLOADED),
    ],
    "fireworks": [
        (401, {}, {"error": {"object": "error", "type": "invalid_request_error", "message": "no"}}, K.UNAUTHORIZED),
        (412, {}, openai("Account is suspended, possibly for its monthly spending limit"), K.BILLING),
        (400, {}, openai("The prompt is too long: 140000, maximum 131071"), K.CONTEXT_LENGTH),
        (429, {}, openai("no", "rate"), K.RATE_LIMITED),
    ],
    "deepseek": [
        (401, {}, openai("Authentication Fails", "authentication_error", "invalid_request_error"), K.UNAUTHORIZED),
        (402, {}, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), K.BILLING),
        (400, {}, openai("This response_format type is unavailable now", "invalid_request_error"), K.UNSUPPORTED),
        (
            400, {}, openai("The `reasoning_content` in the thinking mode must be passed back to the API.",
                            "invalid_request_error", "invalid_request_error"), K.UNSUPPORTED,
        ),
        (400, {}, openai("Model Not Exist", "invalid_request_error", "invalid_request_error"), K.MODEL_NOT_FOUND),
        (
            400, {}, openai("The supported API model names are a or b, but you passed m.", "invalid_request_error",
                            "invalid_request_error"), K.MODEL_NOT_FOUND,
        ),
        (422, {}, openai("missing field `messages`", "invalid_request_error"), K.INVALID_REQUEST),
        (503, {}, openai("Service is too busy", "service_unavailable_error"), K.OVERLOADED),
    ],
    "mistral": [
        (401, {}, {"message": "Unauthorized", "request_id": "req_of_body"}, K.UNAUTHORIZED),
        (401, {}, {"detail": "Unauthorized"}, K.UNAUTHORIZED),
        (
            429, {}, {"object": "error", "message": "Service tier capacity exceeded", "type": "rate_limited",
                      "param": None, "code": "3505"}, K.RATE_LIMITED,
        ),
        (429, {"x-ratelimit-limit-req-minute": "0"}, {"message": "Rate limit exceeded"}, K.MODEL_NOT_FOUND),
        (429, {"x-ratelimit-remaining-tokens-month": "0"}, {"message": "Rate limit exceeded"}, K.QUOTA_EXHAUSTED),
        (
            400, {}, {"object": "error", "message": "Prompt contains 40000 tokens, too large for model with 32768 "
                      "maximum context length", "type": "invalid_request_error", "code": "3051"}, K.CONTEXT_LENGTH,
        ),
        (400, {}, {"object": "error", "message": "Invalid model: m", "type": "invalid_model"}, K.MODEL_NOT_FOUND),
        (
            400, {}, {"object": "error", "message": "Reasoning prompt mode is not enabled for this model",
                      "type": "invalid_request_invalid_args", "param": None, "code": "3051"}, K.UNSUPPORTED,
        ),
        (
            400, {}, {"object": "error", "message": "reasoning_effort='medium' is not supported for this model. Must "
                      "be one of (<ReasoningEffort.none: 'none'>, <ReasoningEffort.high: 'high'>)",
                      "type": "invalid_request_invalid_args", "param": None, "code": "3051"}, K.UNSUPPORTED,
        ),
        (
            422, {}, {"object": "error", "type": "invalid_request_error", "message": {"detail": [
                {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}]}}, K.UNSUPPORTED,
        ),
        (422, {}, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, K.INVALID_REQUEST),
    ],
    "openrouter": [
        (401, {}, router(401, "No auth credentials found"), K.UNAUTHORIZED),
        (402, {}, router(402, "Insufficient credits"), K.BILLING),
        (402, {}, router(402, DEAR), K.UNAFFORDABLE),
        (402, {"retry-after": "3"}, router(402, "Credits are held for calls in flight"), K.RATE_LIMITED, 3, "a"),
        (403, {}, router(403, "Key limit exceeded (daily limit). Manage it in your settings"), K.BILLING),
        (403, {}, router(403, "Your input was flagged", reasons=["violence"]), K.CONTENT_FILTERED),
        (404, {}, router(404, "No endpoints found that support tool use"), K.UNSUPPORTED),
        (404, {}, router(404, "No endpoints found for m"), K.MODEL_NOT_FOUND),
        (400, {}, router(400, "m is not a valid model ID"), K.MODEL_NOT_FOUND),
        (408, {}, router(408, "Timed out"), K.TIMED_OUT),
        (429, DATE, router(429, "Rate limit exceeded: free-models-per-min", headers=FREE), K.RATE_LIMITED, 9),
        (429, {**DATE, **{n.lower(): v for n, v in FREE.items()}}, router(429), K.RATE_LIMITED, 9),
        (400, {}, router(400, raw='{"error": {"message": "prompt is too long: 9 > 5"}}'), K.CONTEXT_LENGTH),
        (502, {}, router(502, "Your chosen model is down"), K.SERVER_ERROR),
        (503, {}, router(503, "No available model provider meets your requirements"), K.OVERLOADED),
        (200, {}, router(502, raw="upstream"), K.SERVER_ERROR),
        (200, {}, router(429), K.RATE_LIMITED),
    ],
    "cerebras": [
        (401, {}, {"message": "no", "type": "invalid_request_error", "code": "wrong_api_key"}, K.UNAUTHORIZED),
        (402, {}, {"message": "no", "type": "payment_required", "code": "payment_required"}, K.BILLING),
        (
            429, {"x-ratelimit-remaining-tokens-minute": "0", "x-ratelimit-reset-tokens-minute": "11.5"},
            {"message": "Tokens per minute limit exceeded", "type": "too_many_tokens_error"}, K.RATE_LIMITED, 11.5,
        ),
        (400, {}, {"message": "Please reduce the length of the messages", "code": "context_length_exceeded"},
         K.CONTEXT_LENGTH),
        (400, {}, {"message": "Unsupported JSON schema fields: {'minItems'}", "param": "response_format",
                   "code": "wrong_api_format"}, K.UNSUPPORTED),
    ],
    "xai": [
        (400, {}, {"code": "invalid-argument", "error": "Incorrect API key provided: xa***"}, K.UNAUTHORIZED),
        (403, {}, {"code": "permission-denied", "error": "Your newly created team doesn't have any credits yet."},
         K.BILLING),
        (404, {}, {"code": "not-found", "error": "The model m does not exist"}, K.MODEL_NOT_FOUND),
        (400, {}, {"code": "invalid-argument", "error": "Model not found: m"}, K.MODEL_NOT_FOUND),
        (400, {}, {"code": "invalid-argument", "error": "Argument not supported on this model: stop"}, K.UNSUPPORTED),
        (400, {}, {"code": "invalid-argument", "error": "This model's maximum prompt length is 131072"},
         K.CONTEXT_LENGTH),
        (429, {}, {"code": "resource-exhausted", "error": "Too many requests"}, K.RATE_LIMITED),
    ],
    "vllm": [
        (
            400, {}, {"object": "error", "type": "BadRequestError", "message": "{'type': 'literal_error', 'loc': "
                      "('body', 'reasoning_effort'), 'msg': \"Input should be 'low', 'medium' or 'high'\"}"},
            K.UNSUPPORTED,
        ),
        (
            422, {}, {"detail": [{"type": "literal_error", "loc": ["body", "reasoning_effort"],
                                  "msg": "Input should be 'low', 'medium' or 'high'"}]}, K.UNSUPPORTED,
        ),
        (400, {}, {"object": "error", "type": "BadRequestError", "code": 400,
                   "message": "This model's maximum context length is 4096 tokens"}, K.CONTEXT_LENGTH),
        (400, {}, openai("The decoder prompt (length 9000) is longer than the maximum model length of 4096"),
         K.CONTEXT_LENGTH),
        (404, {}, {"object": "error", "message": "The model `m` does not exist.", "code": 404}, K.MODEL_NOT_FOUND),
        (200, {}, {"object": "error", "message": "EngineCore died", "code": 500}, K.SERVER_ERROR),
        (400, {}, openai("The input (9000 tokens) is longer than the model's context length (4096 tokens)."),
         K.CONTEXT_LENGTH),  # SGLang
        # vLLM 0.32, as it ran
        (400, {}, said_by_vllm("max_tokens=100000 cannot be greater than max_model_len=1024. Please request fewer "
                               "output tokens. (parameter=max_tokens, value=100000)", "max_tokens"), K.CONTEXT_LENGTH),
        (400, {}, said_by_vllm("tiny-qwen is not a multimodal model"), K.UNSUPPORTED),
        (400, {}, {"object": "error", "message": "At most 1 image(s) may be provided in one request.",
                   "type": "BadRequestError", "param": None, "code": 400}, K.UNSUPPORTED),
        # `transformers serve` 5.19, as it ran: it has one model
        (400, {}, {"detail": "Server is pinned to '/models/tiny-qwen'; requested 'tiny'."}, K.MODEL_NOT_FOUND),
        (
            400, {}, openai("The requested model 'm' is not supported by any provider you have enabled.",
                            "invalid_request_error", "model_not_supported"), K.MODEL_NOT_FOUND,
        ),  # Hugging Face's router
    ],
    "ollama": [
        (400, {}, openai("invalid reasoning value: 'minimal' (must be \"high\", \"low\", or \"none\")"), K.UNSUPPORTED),
        (400, {}, openai('think value "high" is not supported for this model'), K.UNSUPPORTED),
        (404, {}, openai("model 'm' not found, try pulling it first", "api_error"), K.MODEL_NOT_FOUND),
        (404, {}, {"error": "model 'm' not found"}, K.MODEL_NOT_FOUND),
        (400, {}, openai("m does not support tools", "api_error"), K.UNSUPPORTED),
        (400, {}, openai("invalid image input"), K.UNSUPPORTED),
    ],
    "llamacpp": [
        (400, {}, {"error": {"code": 400, "type": "exceed_context_size_error", "message": "no"}}, K.CONTEXT_LENGTH),
        (503, {}, {"error": {"code": 503, "type": "unavailable_error", "message": "Loading model"}}, K.OVERLOADED),
        # llama-server of October 2026, as it ran
        (500, {}, {"error": {"code": 500, "type": "server_error", "message": "image input is not supported - hint: if "
                             "this is unexpected, you may need to provide the mmproj"}}, K.UNSUPPORTED),
        (501, {}, {"error": {"code": 501, "type": "not_supported_error", "message": "This server does not support "
                             "embeddings. Start it with `--embeddings`"}}, K.UNSUPPORTED),
    ],
    "anthropic": [
        (401, {}, anthropic("authentication_error", "invalid x-api-key"), K.UNAUTHORIZED),
        (402, {}, anthropic("billing_error"), K.BILLING),
        (403, {}, anthropic("permission_error", "not for your key"), K.FORBIDDEN, None, "a"),
        (404, {}, anthropic("not_found_error", "model: m"), K.MODEL_NOT_FOUND),
        (409, {}, anthropic("conflict_error"), K.CONFLICT),
        (
            400, {}, anthropic("invalid_request_error", "messages.0.content.1.image.source.base64.media_type: Input "
                               "should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'"), K.UNSUPPORTED,
        ),
        (
            400, {}, anthropic("invalid_request_error", "messages.7.content.2.image.source.base64.data: At least one "
                               "of the image dimensions exceed max allowed size: 8000 pixels"), K.UNSUPPORTED,
        ),
        (
            400, {}, anthropic("invalid_request_error", "messages.1.content: 'image' blocks are not permitted within "
                               "assistant turns"), K.UNSUPPORTED,
        ),
        (413, {}, anthropic("request_too_large"), K.CONTEXT_LENGTH),
        (429, {"retry-after": "12"}, anthropic("rate_limit_error"), K.RATE_LIMITED, 12),
        (
            429, {**DATE, "anthropic-ratelimit-input-tokens-remaining": "0",
                  "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:04Z"},
            anthropic("rate_limit_error"), K.RATE_LIMITED, 4,
        ),
        (429, {}, anthropic("rate_limit_error", code="enforced_spend_limit_reached"), K.BILLING),
        (400, {}, anthropic("invalid_request_error", "You have reached your specified API usage limits"), K.BILLING),
        (400, {}, anthropic("invalid_request_error", "Your credit balance is too low"), K.BILLING),
        (400, {}, anthropic("invalid_request_error", "This organization has been disabled."), K.UNAUTHORIZED),
        (
            400, {}, anthropic("invalid_request_error", "output_config.format.schema: For 'object' type, "
                               "'additionalProperties' must be explicitly set to false"), K.UNSUPPORTED,
        ),
        (400, {}, anthropic("invalid_request_error", "prompt is too long: 250 > 200 maximum"), K.CONTEXT_LENGTH),
        (
            400, {}, anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 9 > 8"),
            K.CONTEXT_LENGTH,
        ),
        (400, {}, anthropic("invalid_request_error", "top_k: Extra inputs are not permitted"), K.UNSUPPORTED),
        (400, {}, anthropic("invalid_request_error", "temperature is deprecated for this model."), K.UNSUPPORTED),
        (
            400, {}, anthropic("invalid_request_error", 'tool_choice: type "tool" and "any" are not supported for this '
                               "model."), K.UNSUPPORTED,
        ),
        (
            400, {}, anthropic("invalid_request_error", '"thinking.type.disabled" is not supported for this model. Use '
                               '"thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'),
            K.UNSUPPORTED,
        ),
        (
            400, {}, anthropic("invalid_request_error", 'To turn thinking off on this model, send "thinking": {"type": '
                               '"between_tools"} instead of {"type": "disabled"}.'), K.UNSUPPORTED,
        ),
        (400, {}, anthropic("invalid_request_error", "messages: at least one is required"), K.INVALID_REQUEST),
        (500, {}, anthropic("api_error"), K.SERVER_ERROR),
        (504, {}, anthropic("timeout_error"), K.TIMED_OUT),
        (529, {"x-should-retry": "true"}, anthropic("overloaded_error"), K.OVERLOADED),
        (200, {}, anthropic("overloaded_error"), K.OVERLOADED),
    ],
    "gemini": [
        (400, {}, gemini("INVALID_ARGUMENT", "API key not valid.", BAD_KEY), K.UNAUTHORIZED),
        (401, {}, gemini("UNAUTHENTICATED"), K.UNAUTHORIZED),
        (403, {}, gemini("PERMISSION_DENIED", "Your project was denied access"), K.FORBIDDEN, None, "a"),
        (404, {}, gemini("NOT_FOUND", "models/m is not found for API version v1beta"), K.MODEL_NOT_FOUND),
        (400, {}, [gemini("FAILED_PRECONDITION", "enable billing")], K.BILLING),
        (400, {}, gemini("INVALID_ARGUMENT", "The input token count (9) exceeds the maximum"), K.CONTEXT_LENGTH),
        (400, {}, gemini("INVALID_ARGUMENT", "contents is not specified"), K.INVALID_REQUEST),
        (400, {}, gemini("INVALID_ARGUMENT", "Unsupported MIME type: image/gif"), K.UNSUPPORTED),
        (429, {}, gemini("RESOURCE_EXHAUSTED", "q", quota("PerMinutePerModel"), RETRY), K.RATE_LIMITED, 26),
        (429, {}, [gemini("RESOURCE_EXHAUSTED", "q", quota("PerMinutePerModel"), RETRY)], K.RATE_LIMITED, 26),
        (429, {}, gemini("RESOURCE_EXHAUSTED", "q", quota("RequestsPerDay"), RETRY), K.QUOTA_EXHAUSTED, 26),
        (429, {}, gemini("RESOURCE_EXHAUSTED", "quota exceeded, limit: 0"), K.MODEL_NOT_FOUND),
        (429, {}, gemini("RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), K.BILLING),
        (429, {}, gemini("RESOURCE_EXHAUSTED", "Your project has exceeded its monthly spending cap."), K.BILLING),
        (400, {}, gemini("INVALID_ARGUMENT", "thinking_level MEDIUM is not supported by this model"), K.UNSUPPORTED),
        (400, {}, gemini("INVALID_ARGUMENT", "Budget 0 is invalid. It only works in thinking mode."), K.UNSUPPORTED),
        (500, {}, [gemini("INTERNAL")], K.SERVER_ERROR),
        (503, {}, gemini("UNAVAILABLE", "The model is overloaded"), K.OVERLOADED),
        (504, {}, gemini("DEADLINE_EXCEEDED"), K.TIMED_OUT),
    ],
}  # fmt: skip
LITELLM: list[tuple[Any, ...]] = [  # LiteLLM's proxy 1.108.7, as it ran, before OpenAI's and Anthropic's format
    (400, {}, openai("No connected db.", "no_db_connection", "400"), K.UNAUTHORIZED),
    (
        400, {}, openai("/chat/completions: Invalid model name passed in model=nosuch. Call `/v1/models` to view "
                        "available models for your key.", "invalid_request_error", "400"), K.MODEL_NOT_FOUND,
    ),
    (
        400, {}, openai("litellm.ContextWindowExceededError: litellm.BadRequestError: this is a mock context window "
                        "exceeded error model=toolong. context_window_fallbacks=None."), K.CONTEXT_LENGTH,
    ),
    (408, {}, openai("litellm.Timeout: This is a mock timeout error", "invalid_request_error", "408"), K.TIMED_OUT),
    (401, {}, openai("key not allowed to access model", "key_model_access_denied", "401"), K.MODEL_NOT_FOUND),
    (400, {}, openai("Budget has been exceeded! Current cost: 2, Max budget: 1", "budget_exceeded", "400"), K.BILLING),
    (429, {}, openai("litellm.RateLimitError: this is a mock error", "throttling_error", "429"), K.RATE_LIMITED),
]  # fmt: skip
PROXIES: list[tuple[Any, ...]] = [  # what stands before any of them may say
    (502, {}, HTML, K.SERVER_ERROR),
    (503, {"retry-after": "15"}, HTML, K.OVERLOADED, 15),
    (504, {}, "", K.TIMED_OUT),
    (520, {}, HTML, K.SERVER_ERROR),
    (524, {}, "", K.TIMED_OUT),
    (413, {}, HTML, K.CONTEXT_LENGTH),
    (404, {}, HTML, K.MODEL_NOT_FOUND),
    (405, {}, "", K.MODEL_NOT_FOUND),
    (403, {}, HTML, K.MALFORMED),
    (403, {}, "RBAC: access denied", K.MALFORMED),
    (403, {}, "", K.MALFORMED),
    (403, {}, {"message": "Forbidden"}, K.FORBIDDEN, None, "a"),
    (407, {}, "", K.MALFORMED),
    (418, {}, [], K.MALFORMED),
    (101, {"upgrade": "websocket", "connection": "upgrade"}, "", K.MALFORMED),
    (302, {"location": "http://127.0.0.1:9/"}, "", K.MALFORMED),
    (429, {**DATE, "retry-after": "Fri, 15 Jan 2027 08:00:07 GMT"}, "", K.RATE_LIMITED, 7),
    (429, {"retry-after": "soon"}, {"error": None}, K.RATE_LIMITED),
    (401, {"content-encoding": "gzip"}, "", K.UNAUTHORIZED),
    (401, {"content-encoding": "br"}, "?", K.UNAUTHORIZED),
]
CASES = [
    pytest.param(dialect, *(*shape, None, None)[:6], id=f"{dialect}-{shape[0]}-{shape[3]}-{number}")
    for dialect, shapes in {**SHAPES, "openai ": PROXIES + LITELLM, "gemini ": PROXIES, "anthropic ": LITELLM}.items()
    for number, shape in enumerate(shapes)
]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SHOWN = {"messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}, IMAGE]}]}


async def failure(
    dialect: str, response: bytes, stream: bool = False, request: InferenceRequest = InferenceRequest(prompt=PROMPT)
) -> Any:
    """What the call to a provider of this preset that answers so raises."""
    http = Http()
    try:
        async with serving(always(response)) as url:
            kind, endpoint = DIALECTS[dialect].kind, Endpoint("p", "m", "m")
            connector = build(ProviderConfig("p", kind, url, (endpoint,), dialect, Secret(KEY)), http)
            timeouts = Timeouts(total_s=60)
            with pytest.raises(ProviderError) as error:
                await connector.call(endpoint, request, timeouts, Heard() if stream else None)
    finally:
        await http.aclose()
    return error.value


def response(status: int, headers: dict[str, str], body: Any) -> bytes:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = "\r\n".join(f"{name}: {value}" for name, value in {"x-test": "1", **headers}.items())
    return said(raw, f"{status} X", lines)


def test_every_preset_has_its_shapes() -> None:
    assert set(SHAPES) == set(DIALECTS)


@pytest.mark.parametrize(("dialect", "status", "headers", "body", "kind", "after_s", "scope"), CASES)
async def test_a_shape_means(
    dialect: str,
    status: int,
    headers: dict[str, str],
    body: Any,
    kind: FailureKind,
    after_s: float | None,
    scope: str | None,
) -> None:
    shown = InferenceRequest.model_validate(SHOWN)
    told = (await failure(dialect.strip(), response(status, headers, body), request=shown)).failure
    assert (told.kind, told.retry_after_s) == (kind, None if after_s is None else pytest.approx(after_s, abs=0.01))
    assert (told.scope is Scope.ACCOUNT) == (kind in ACCOUNT or scope == "a")
    assert told.billed is (Billed.MAYBE if kind in MAYBE else Billed.NO)


@pytest.mark.parametrize(
    ("dialect", "status", "body"),
    [
        (
            "azure", 400,
            {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        ),
        (
            "xai", 403,
            {"code": "The caller does not have permission to execute the specified operation",
             "error": "Content violates usage guidelines. Team: t, Model: m, Failed check: SAFETY_CHECK_TYPE_BIO"},
        ),
    ],
)  # fmt: skip
async def test_a_prompt_that_a_filter_has_read_may_be_billed(dialect: str, status: int, body: Any) -> None:
    told = (await failure(dialect, response(status, {}, body))).failure
    assert (told.kind, told.scope, told.billed) == (K.CONTENT_FILTERED, Scope.ENDPOINT, Billed.MAYBE)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_a_failure_has_the_providers_words_and_id_and_neither_key_nor_prompt(
    dialect: str, status: int, stream: bool
) -> None:
    repeated = f"no {KEY}, no {PROMPT}, no {PROMPT[:40]}, no {json.dumps(PROMPT)}, no {PROMPT[20:60]!r}: Bad luck"
    shape = response(status, {"x-request-id": "req_1"}, {"error": {"message": repeated}})
    error = await failure(dialect, shape, stream)
    assert error.failure.request_id == "req_1"
    assert error.failure.message.endswith("Bad luck")
    for hidden in (KEY, *(PROMPT[at : at + 24] for at in range(len(PROMPT) - 24))):
        assert hidden not in repr(error.failure)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
async def test_neither_a_tools_arguments_nor_an_image_are_repeated(dialect: str) -> None:
    arguments = json.dumps({"account": "of-a-customer-0123456789", "amount": 12345})
    image = f"data:image/png;base64,{base64.b64encode(bytes(range(256)) * 8).decode()}"
    call = {"id": "c", "function": {"name": "pay", "arguments": arguments}}
    parts = [{"type": "text", "text": "Pay it."}, {"type": "image_url", "image_url": {"url": image}}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "paid"},
    ]
    repeated = f"not {arguments}, not {image[30:200]}: Bad luck"
    shape = response(400, {}, {"error": {"message": repeated}})
    told = await failure(dialect, shape, request=InferenceRequest.model_validate({"messages": messages}))
    assert told.failure.message == "not …, not …: Bad luck"


async def test_without_an_image_no_refusal_is_about_one() -> None:
    """Otherwise a job with a bad tool named `image` would be tried at every vendor."""
    shape = response(400, {}, openai("Invalid name of a tool: 'make image'"))
    asked = (InferenceRequest(prompt=PROMPT), InferenceRequest.model_validate(SHOWN))
    kinds = [(await failure("openai", shape, request=one)).failure.kind for one in asked]
    assert kinds == [K.INVALID_REQUEST, K.UNSUPPORTED]


async def test_gemini_tells_a_limit_by_the_minute_when_it_is_exceeded() -> None:
    free = "PerProjectPerModel-FreeTier"
    told = (
        quota(f"GenerateRequestsPerMinute{free}", "15"),
        quota("GenerateContentPaidTierInputTokensPerModelPerMinute", "1000000"),
        quota(f"GenerateRequestsPerDay{free}", "20"),  # of their day, which is none of our windows
        quota(f"GenerateRequestsPerMinute{free}", "0"),
        quota(f"GenerateRequestsPerMinute{free}", "many"),
        quota(f"GenerateRequestsPerMinute{free}"),
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": "none"},
    )
    error = await failure("gemini", response(429, {}, gemini("RESOURCE_EXHAUSTED", "q", *told)))
    limits = {"requests_per_minute": 15, "input_tokens_per_minute": 1_000_000}
    assert error.limits == tuple(ObservedLimit(kind, limit) for kind, limit in limits.items())


async def test_the_id_of_a_call_may_be_in_the_body() -> None:
    for dialect, body in (("anthropic", anthropic("api_error")), ("mistral", SHAPES["mistral"][0][2])):
        assert (await failure(dialect, response(500, {}, body))).failure.request_id == "req_of_body"


async def test_a_provider_may_forbid_the_repetition_of_a_call() -> None:
    told = await failure("openai", response(500, {"x-should-retry": "false"}, openai()))
    assert (told.failure.kind, told.failure.repeatable) == (K.SERVER_ERROR, False)


LIMITS: list[tuple[str, dict[str, str], dict[str, tuple[int | None, int, float | None]]]] = [
    (
        "openai",
        {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "99",
         "x-ratelimit-reset-requests": "12ms", "x-ratelimit-limit-tokens": "1e999",
         "x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "1m2s"},
        {"requests_per_minute": (100, 99, 0.012), "tokens_per_minute": (None, 7, 62)},
    ),
    ("azure", {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-remaining-tokens": "5"},
     {"tokens_per_minute": (None, 5, None)}),
    (
        "groq",
        {"x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "14370",
         "x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-limit-tokens": "18000",
         "x-ratelimit-remaining-tokens": "17997", "x-ratelimit-reset-tokens": "7.66s"},
        {"requests_per_day": (14400, 14370, 179.56), "tokens_per_minute": (18000, 17997, 7.66)},
    ),
    (
        "anthropic",
        {**DATE, "anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0",
         "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:04Z",
         "anthropic-ratelimit-output-tokens-limit": "8000", "anthropic-ratelimit-output-tokens-remaining": "7000"},
        {"requests_per_minute": (50, 0, 4), "output_tokens_per_minute": (8000, 7000, None)},
    ),
    (
        "mistral",
        {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "59",
         "x-ratelimit-limit-tokens-minute": "500000", "x-ratelimit-remaining-tokens-minute": "499000"},
        {"requests_per_minute": (60, 59, None), "tokens_per_minute": (500000, 499000, None)},
    ),
    (
        "cerebras",
        {"x-ratelimit-limit-requests-day": "1000", "x-ratelimit-remaining-requests-day": "999",
         "x-ratelimit-reset-requests-day": "3600.5"},
        {"requests_per_day": (1000, 999, 3600.5)},
    ),
    (
        "fireworks",
        {"x-ratelimit-limit-tokens-prompt": "900", "x-ratelimit-remaining-tokens-prompt": "800",
         "x-ratelimit-limit-tokens-generated": "36", "x-ratelimit-remaining-tokens-generated": "30"},
        {"input_tokens_per_minute": (900, 800, None), "output_tokens_per_minute": (36, 30, None)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "headers", "meant"), LIMITS, ids=[dialect for dialect, *_ in LIMITS])
async def test_a_failure_tells_the_limits_of_the_vendors_own_headers(
    dialect: str, headers: dict[str, str], meant: dict[str, tuple[int | None, int, float | None]]
) -> None:
    error = await failure(dialect, response(429, headers, openai()))
    told = {limit.kind: (limit.limit, limit.remaining, limit.reset_s) for limit in error.limits}
    assert told.keys() == meant.keys()
    for kind, values in meant.items():
        assert told[kind] == pytest.approx(values, abs=0.01)

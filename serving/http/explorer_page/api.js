/* Calls to the JSON API of this server. Each returns the parsed answer or throws an ApiError. */

const TOKEN = "grasp-token"; // in sessionStorage: it ends with the tab and never appears in an address
const TIMEOUT_MS = 60000; // the first search waits for the encoder

export class ApiError extends Error {
  /** `status` is 0 if there was no answer. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get wantsToken() {
    return this.status === 401 || this.status === 403;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

async function call(path, signal, body) {
  const headers = { Accept: "application/json" };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  const request = {
    method: body ? "POST" : "GET",
    body: body && JSON.stringify(body),
    headers,
    signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
  };
  let response;
  let answer;
  try {
    response = await fetch(path, request);
    answer = await response.json();
  } catch (error) {
    if (signal.aborted) throw error;
    throw response ? new ApiError(response.status, "The answer is not JSON.") : unreachable(error);
  }
  if (!response.ok) throw new ApiError(response.status, message(answer, response.status));
  return answer;
}

function unreachable(error) {
  const why = error.name === "TimeoutError" ? `did not answer within ${TIMEOUT_MS / 1000} s` : "cannot be reached";
  return new ApiError(0, `The service ${why}. Is it running?`);
}

/** The `detail` of an error: a text, or a list of fields with messages. */
function message(answer, status) {
  const detail = answer?.detail;
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((each) => `${each.field}: ${each.message}`).join("; ");
  return `The service answered with status ${status}.`;
}

const query = (parameters) => new URLSearchParams(parameters); // takes every id; a path cannot carry . and ..

export const recommendations = (signal, request) => call("v1/recommendations", signal, request);
export const user = (signal, id) => call(`v1/user?${query({ user_id: id })}`, signal);
export const item = (signal, id) => call(`v1/item?${query({ item_id: id })}`, signal);
export const search = (signal, q, k) => call(`v1/search?${query({ q, k })}`, signal);
export const similarItems = (signal, id, k) => call(`v1/item/similar?${query({ item_id: id, k })}`, signal);
export const categories = (signal) => call("v1/categories", signal);
export const examples = (signal) => call("v1/examples", signal);
export const releases = (signal) => call("v1/releases", signal);

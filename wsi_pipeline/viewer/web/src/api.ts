// Talking to the server. A refusal is an ApiError whose message is the server's own sentence.

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly body: unknown,
  ) {
    super(message);
  }
}

export const TOKEN_NEEDED = "token-needed";

async function answer(response: Response): Promise<Response> {
  if (response.ok) {
    return response;
  }
  if (response.status === 401) {
    window.dispatchEvent(new Event(TOKEN_NEEDED));
  }
  const body = await response.json().catch(() => null);
  const said = body && typeof body === "object" && "error" in body ? String(body.error) : null;
  throw new ApiError(response.status, said ?? `The server answered ${response.status} ${response.statusText}.`, body);
}

async function call(path: string, options: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") {
      throw error;
    }
    throw new ApiError(0, "The server does not answer. Is view-slides still running?", null);
  }
  return answer(response);
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const response = await call(path, signal ? { signal } : {});
  return (await response.json()) as T;
}

export async function getBytes(path: string): Promise<{ bytes: ArrayBuffer; headers: Headers }> {
  const response = await call(path, {});
  return { bytes: await response.arrayBuffer(), headers: response.headers };
}

export async function send<T>(method: "POST" | "PUT", path: string, body: unknown): Promise<T> {
  const asIs = body instanceof Blob;
  const response = await call(path, {
    method,
    headers: {
      "X-Requested-With": "wsi-pipeline",
      "Content-Type": asIs ? body.type || "application/octet-stream" : "application/json",
    },
    body: asIs ? body : JSON.stringify(body),
  });
  return (await response.json()) as T;
}

// An id is safe in URLs as it is.
export const slidePath = (id: string, rest = ""): string => `/api/slides/${id}${rest}`;

/** What to tell people of an error, whatever was thrown. */
export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

// Follows OUT: asks again whenever the server says that something changed, or every few seconds where it cannot say.

const POLL_MS = 5000;

/** Call `refresh` now and after every change, until the answer is called. */
export function follow(refresh: () => Promise<void>): () => void {
  let stopped = false;
  let running = false;
  let again = false;
  let poll = 0;
  const refreshOnce = async () => {
    if (running) {
      again = true;
      return;
    }
    running = true;
    do {
      again = false;
      await refresh();
    } while (again && !stopped);
    running = false;
  };
  const events = new EventSource("/api/events");
  const pollInstead = () => {
    if (!poll && !stopped) {
      poll = window.setInterval(refreshOnce, POLL_MS);
    }
  };
  events.onmessage = () => void refreshOnce();
  events.onopen = () => {
    window.clearInterval(poll);
    poll = 0;
  };
  events.onerror = pollInstead;
  void refreshOnce();
  return () => {
    stopped = true;
    events.close();
    window.clearInterval(poll);
  };
}

import { useState } from "preact/hooks";
import { send, sentence } from "../api";
import { Shell } from "../parts/shell";
import { Trouble } from "../parts/trouble";

export function TokenPage() {
  const [token, setToken] = useState("");
  const [trouble, setTrouble] = useState("");
  const enter = async (event: Event) => {
    event.preventDefault();
    try {
      await send("POST", "/api/login", { token: token.trim() });
      window.location.reload();
    } catch (error) {
      setTrouble(sentence(error));
    }
  };
  return (
    <Shell title="Token needed">
      <h1>Token needed</h1>
      <p>This server is open to other machines, so it asks for the token that view-slides printed when it started.</p>
      <form class="row" onSubmit={enter}>
        <label>
          Token{" "}
          <input
            type="password"
            autocomplete="off"
            value={token}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
        </label>
        <button type="submit">Enter</button>
      </form>
      {trouble && <Trouble>{trouble}</Trouble>}
    </Shell>
  );
}

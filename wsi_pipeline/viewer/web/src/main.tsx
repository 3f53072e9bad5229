// Which page: said by the path.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { TOKEN_NEEDED } from "./api";
import { HelpPage } from "./pages/help";
import { ListPage } from "./pages/list";
import { ModelPage } from "./pages/model";
import { NoPage } from "./pages/none";
import { SlidePage } from "./pages/slide";
import { TokenPage } from "./pages/token";
import { TryPage } from "./pages/try";
import { applyTheme } from "./parts/theme";
import "@annotorious/openseadragon/annotorious-openseadragon.css";
import "./styles/base.css";
import "./styles/list.css";
import "./styles/slide.css";

function Page() {
  const [tokenNeeded, setTokenNeeded] = useState(false);
  useEffect(() => {
    const ask = () => setTokenNeeded(true);
    window.addEventListener(TOKEN_NEEDED, ask);
    return () => window.removeEventListener(TOKEN_NEEDED, ask);
  }, []);
  const path = window.location.pathname;
  if (tokenNeeded) {
    return <TokenPage />;
  }
  if (path === "/") {
    return <ListPage />;
  }
  if (path.startsWith("/slides/")) {
    return <SlidePage id={path.slice("/slides/".length)} />;
  }
  if (path === "/try") {
    return <TryPage />;
  }
  if (path === "/model") {
    return <ModelPage />;
  }
  if (path === "/help") {
    return <HelpPage />;
  }
  return <NoPage />;
}

applyTheme();
const root = document.getElementById("app");
if (root) {
  render(<Page />, root);
}

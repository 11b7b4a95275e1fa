/** Who may look: every page begins here. */

import { CallError, session, signIn, signOut, type Session } from "./api";
import { el, notice, showTop } from "./dom";
import { say } from "./strings";

/** Runs the page once somebody is signed in who may read; until then it asks for a key. */
export async function enter(parts: { back?: boolean }, page: (who: Session, main: HTMLElement) => Promise<void>): Promise<void> {
  const main = document.getElementById("main") as HTMLElement;
  showTop(parts);
  try {
    const who = await session();
    if (who.needs_key && !who.is_known) return askForKey(main);
    showTop({ ...parts, ...(who.needs_key ? { signOut: () => void signOut() } : {}) });
    if (!who.roles.includes("read")) {
      main.replaceChildren(notice(say("noAccess")));
      return;
    }
    await page(who, main);
  } catch (error) {
    main.replaceChildren(failure(error));
  }
}

/** What went wrong, and a way on. */
export function failure(error: unknown): HTMLElement {
  const again = el("button", { type: "button", click: () => location.reload() }, say("retry"));
  const isAway = error instanceof CallError && error.status === 0;
  return notice(isAway ? say("offline") : say("failed", { detail: error instanceof Error ? error.message : String(error) }), again);
}

function askForKey(main: HTMLElement): void {
  const key = el("input", { id: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    try {
      await signIn(key.value.trim());
      location.reload();
    } catch (error) {
      const isWrong = error instanceof CallError && (error.status === 401 || error.status === 403);
      wrong.textContent = isWrong ? say("keyWrong") : say("failed", { detail: (error as Error).message });
      key.select();
    }
  };
  main.replaceChildren(
    el(
      "form",
      { class: "signin", submit: (event) => void submit(event) },
      el("h1", {}, say("signIn")),
      el("p", {}, say("signInText")),
      el("label", { for: "key" }, say("key")),
      key,
      wrong,
      el("button", { class: "primary" }, say("signIn")),
    ),
  );
  key.focus();
}

/** Elements without markup: nothing that a service says is ever read as HTML. */

import { choose, language, LANGUAGES, say, type Language, type Word } from "./strings";

type Child = Node | string | null | undefined;
type Attributes = Record<string, string | number | boolean | ((event: Event) => void) | null | undefined>;

/** An element; an attribute that is a function listens, `true` stands alone, and null is left out. */
export function el<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child): child is Node | string => child !== null && child !== undefined));
  return made;
}

/** A box to choose from, with its label; `options` are values and words. */
export function chooser(
  word: Word,
  options: [string, string][],
  value: string,
  onChange: (value: string) => void,
): HTMLElement {
  const select = el("select", { change: () => onChange(select.value) });
  for (const [name, text] of options) select.append(el("option", { value: name, selected: name === value }, text));
  return el("label", {}, el("span", {}, say(word)), select);
}

/** The line at the top of every page. */
export function showTop(parts: { back?: boolean; signOut?: () => void }): void {
  document.documentElement.lang = language;
  const top = document.getElementById("top");
  top?.replaceChildren(
    el("a", { class: "brand", href: "." }, say("title")),
    el("span", { class: "research" }, say("research")),
    el(
      "nav",
      { "aria-label": say("title") },
      parts.back ? el("a", { class: "button", href: "." }, say("worklist")) : null,
      chooser(
        "language",
        Object.keys(LANGUAGES).map((name) => [name, name.toUpperCase()]),
        language,
        (name) => choose(name as Language),
      ),
      parts.signOut ? el("button", { type: "button", click: parts.signOut }, say("signOut")) : null,
    ),
  );
}

/** What stands in place of all else: a sentence, and what can be done. */
export function notice(text: string, ...more: Child[]): HTMLElement {
  return el("section", { class: "notice", role: "status" }, el("p", {}, text), ...more);
}

/** The button that changes between dark and light, and remembers it. */

import { byId } from "./element.js";

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

/** @param {() => void} onChange called when other colors hold */
export function startThemeSwitch(onChange) {
  const button = byId("theme");
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    onChange();
  };
  button.addEventListener("click", () => {
    choose(isDark() ? "light" : "dark");
    show();
  });
  prefersDark.addEventListener("change", show);
  show();
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : prefersDark.matches;
}

/** @param {"dark" | "light"} theme */
function choose(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Storage is switched off: the choice holds until the page is left.
  }
}

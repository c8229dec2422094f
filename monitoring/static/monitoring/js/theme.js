// A classic script in the head: it runs before the first paint, so that no wrong theme flashes up.
"use strict";

try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is switched off: the system's preference holds.
}

// Who judges: the name that was last typed into a page of this browser, or else the one that the server was told.
const NAME = "sgpipe-name";
const { name, readOnly: mode } = document.body.dataset;

export const readOnly = mode === "true";

export function person() {
  let typed = null;
  try {
    typed = readOnly ? null : localStorage.getItem(NAME);
  } catch {
    // A browser that stores nothing.
  }
  return typed || name || "anonymous";
}

// Returns the name; the server's if this one is blank.
export function rename(typed) {
  const chosen = typed.trim() || name || "anonymous";
  try {
    localStorage.setItem(NAME, chosen);
  } catch {
    // It holds for this page.
  }
  return chosen;
}

// Dark or light: as the system says, or as chosen here. Loaded before the page is drawn, so that nothing flashes.
try {
  const chosen = localStorage.getItem("sgpipe-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage, the system's choice stays.
}

addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("sgpipe-theme", root.dataset.theme);
    } catch {
      // It holds for this page.
    }
  });
});

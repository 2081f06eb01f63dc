(() => {
  const data = document.documentElement.dataset;
  const key = "pixart training " + location.pathname;
  const opened = () => [...document.querySelectorAll("details")].map((one) => one.open);
  const remember = () => {
    try { sessionStorage.setItem(key, JSON.stringify({ opened: opened(), top: scrollY })); } catch { /* no storage */ }
  };
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) || "{}");
    document.querySelectorAll("details").forEach((one, i) => { one.open = (kept.opened || [])[i] || false; });
    if (kept.top) scrollTo(0, kept.top);
    sessionStorage.removeItem(key);
  } catch { /* no storage */ }
  if (data.state !== "running") return;
  const age = document.getElementById("age");
  const tell = () => {
    const minutes = (Date.now() / 1000 - Number(data.written)) / 60;
    if (minutes < 3) return;
    age.className = "late";
    age.textContent = "nothing new for " + (minutes < 120 ? Math.round(minutes) + " min" : Math.round(minutes / 60) + " h") +
      ": stopped, or at a long step";
  };
  tell();
  setInterval(() => {
    tell();
    if (document.hidden || String(getSelection())) return;
    remember();
    location.reload();
  }, 1000 * Number(data.refresh));
})();

// Sets the chosen colours before anything is drawn; a module would come too late, and the page would flash.
"use strict";
try {
  const chosen = localStorage.getItem("megalm.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage the system's colours stay.
}

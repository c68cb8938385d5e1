// What this browser remembers: settings and a random name for as long as it likes, the API key for the tab's life alone.

const DEFAULTS = {
  model: null,
  temperature: 0.7,
  topP: 1,
  maxTokens: null,
  seed: null,
  system: "",
  logprobs: true,
  consent: false,
};

// Storage that never throws: private windows may have none, and full ones refuse.
function kept(name, key) {
  let last = null;
  let isRefused = false; // otherwise what another tab has deleted is gone here too
  return {
    get() {
      try {
        return isRefused ? last : window[name].getItem(key);
      } catch {
        return last;
      }
    },
    set(value) {
      last = value;
      try {
        if (value === null) window[name].removeItem(key);
        else window[name].setItem(key, value);
        isRefused = false;
      } catch {
        isRefused = true;
      }
      return !isRefused;
    },
  };
}

export const secret = kept("sessionStorage", "megalm.key");
export const sessionConversations = kept("sessionStorage", "megalm.conversations");
const settings = kept("localStorage", "megalm.settings");
const USER = "megalm.user";
const user = kept("localStorage", USER);
const theme = kept("localStorage", "megalm.theme");

// 128 random bits. crypto.randomUUID is there on https and on this machine only.
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Whose conversations these are: a secret of this browser.
export function userId() {
  if (!user.get()) user.set(randomId());
  return user.get();
}

export function forgetUser() {
  user.set(null);
}

// `act` once another tab has done so.
export function whenForgotten(act) {
  window.addEventListener("storage", (event) => {
    if (event.key === USER && event.newValue === null) act();
  });
}

export function readSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(settings.get() ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export function writeSettings(changes) {
  settings.set(JSON.stringify({ ...readSettings(), ...changes }));
}

// "light", "dark" or "system".
export function themeChoice() {
  return theme.get() ?? "system";
}

export function chooseTheme(choice) {
  theme.set(choice === "system" ? null : choice);
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
}

export function isDark() {
  const choice = themeChoice();
  return choice === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : choice === "dark";
}

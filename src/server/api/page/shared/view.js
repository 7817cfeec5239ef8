// The open view, and the loop that polls for it.
//
// To add a view:
//   1. Write views/NAME.html, one <section id="view-NAME" hidden>, and views/NAME.js, one object as
//      described below.
//   2. Add both files to the list in page.rs, and the object to VIEWS in router.js.
// The other files here help: api.js calls the server, dom.js changes the document (`renderList` for
// everything that is a list), text.js and time.js format, widgets.js has what several views show.
// All scripts share one scope: a top-level name must be unique among all of them.
//
// A view has:
//   id           the id of its section, without `view-`
//   title        the title of the window
//   tab          the link of the header that it belongs to, such as 'home' or 'machines'; optional
//   search       the id of its search field, for the key `/`; optional
//   needsName    true if its address is #/VIEW/NAME; optional
//   missing      the message when the server answers 404; optional, the error is shown otherwise
//   open(path, query)  runs when the address changes, with the rest of the path and the query
//   poll(signal)       fetches and renders; returns the milliseconds until the next poll, or
//                      something false if nothing can change any more
//   back()       the address that Escape leads to; optional, the tasks otherwise

let currentView = null;

// Pauses after a failed poll, in milliseconds: 2 s, 4 s, 8 s and then 15 s.
const LONGEST_PAUSE_MS = 15_000;
// A poll that took 1 s is followed by 4 s without: a slow server or network is asked less often.
const PAUSE_PER_POLL = 4;

// Counts starts and stops: a poll that ends after its round has been stopped changes nothing.
let pollRound = 0;
let pollTimer;
let pollAbort = new AbortController();
let failedPolls = 0;

function stopPolling() {
  pollRound += 1;
  clearTimeout(pollTimer);
  pollAbort.abort();
  setText(byId('live'), '');
}

// Polls at once, and then as often as the view wants.
function startPolling() {
  stopPolling();
  if (document.hidden || tokenMissing || !currentView) return;
  pollAbort = new AbortController();
  pollOnce(pollRound, true);
}

// Without `withView` only the first line of the view is fetched.
async function pollOnce(round, withView) {
  const began = performance.now();
  let pause;
  try {
    const {signal} = pollAbort;
    [pause] = await Promise.all([withView && currentView.poll(signal), pollStatus(signal)]);
    if (round !== pollRound) return;
    failedPolls = 0;
    showNote('');
    setText(byId('live'), pause ? '● live' : '');
  } catch (error) {
    if (round !== pollRound || error.name === 'AbortError') return;
    if (error.status === 404 && currentView.missing) {
      showGone(currentView.missing, error.message);
      return;
    }
    failedPolls += 1;
    showNote(safeLine(error.message));
    setText(byId('live'), '');
    pause = Math.min(LONGEST_PAUSE_MS, 1000 * 2 ** failedPolls);
  }
  const took = performance.now() - began;
  const delay = Math.max(pause || IDLE_STATUS_PAUSE_MS, PAUSE_PER_POLL * took);
  pollTimer = setTimeout(pollOnce, delay, round, Boolean(pause));
}

document.onvisibilitychange = () => {
  if (document.hidden) stopPolling();
  else startPolling();
};

// The message above the view; '' hides it.
function showNote(text, {offerToken = false} = {}) {
  setText(byId('note-text'), text);
  setVisible(byId('note-token'), offerToken);
  setVisible(byId('note'), text);
}

function showSection(id) {
  for (const section of document.querySelectorAll('main > section')) {
    setVisible(section, section.id === id);
  }
}

// In place of a view: an address that leads nowhere.
function showGone(title, text) {
  stopPolling();
  currentView = null;
  showSection('view-gone');
  setText(byId('gone-title'), title);
  setText(byId('gone-text'), safeLine(text));
}

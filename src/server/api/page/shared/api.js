// Calls of the API, and the token they carry.
//
// `get`, `post`, `put` and `remove` return the answer's envelope {data, next, …}. They throw a `Failure`: its message
// can be shown as it is, its `status` is 0 if there was no answer at all.

// A server behind a proxy may have a path of its own in front.
const BASE = location.origin + location.pathname.replace(/\/*$/, '/');

// Kept for this tab only. Servers of one origin under several paths have a token each.
const TOKEN_KEY = 'sidebike-token ' + BASE;
let token = sessionStorage.getItem(TOKEN_KEY) ?? '';
// True from an answer 401 until a token is entered: nothing is asked for in between.
let tokenMissing = false;

class Failure extends Error {
  constructor(status, message, data) {
    super(message);
    this.status = status;
    this.data = data;
  }
}

// `signal` aborts the call.
async function get(path, signal) {
  return parseEnvelope(await send('GET', path, {signal}));
}

async function post(path, body) {
  return parseEnvelope(await send('POST', path, {body}));
}

async function put(path, body) {
  return parseEnvelope(await send('PUT', path, {body}));
}

async function remove(path) {
  return parseEnvelope(await send('DELETE', path, {}));
}

// For calls that answer with text, such as a command's output.
async function getText(path, signal) {
  const answer = await send('GET', path, {signal});
  return answer.content;
}

async function send(method, path, {body, signal}) {
  const headers = {};
  if (token) headers.Authorization = 'Bearer ' + token;
  if (body) headers['Content-Type'] = 'application/json';
  const options = {method, headers, signal, body: body && JSON.stringify(body), cache: 'no-store'};
  let response;
  let content;
  try {
    response = await fetch(BASE + 'api/v1/' + path, options);
    content = await response.text();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure(0, 'The server cannot be reached; trying again.');
  }
  correctClock(response.headers.get('Date'));
  const answer = {status: response.status, content};
  if (!response.ok) throw failureOf(answer);
  return answer;
}

function failureOf(answer) {
  const {msg, data} = parseEnvelope(answer);
  if (answer.status === 401) askForToken(msg);
  return new Failure(answer.status, msg || `The server answered ${answer.status}.`, data);
}

function parseEnvelope({content}) {
  try {
    return JSON.parse(content);
  } catch {
    // The page of a proxy.
    return {};
  }
}

function askForToken(reason) {
  tokenMissing = true;
  stopPolling();
  const hint = 'It was started with SIDEBIKE_TOKEN, or with a token for reading only.';
  setText(byId('token-reason'), token && reason ? safeLine(reason) : hint);
  const dialog = byId('token-dialog');
  if (dialog.open) return;
  dialog.returnValue = '';
  dialog.showModal();
}

byId('token-dialog').onclose = () => {
  const input = byId('token-input');
  const typed = input.value.trim();
  input.value = '';
  if (!typed || byId('token-dialog').returnValue !== 'yes') {
    showNote('This server wants a token.', {offerToken: true});
    return;
  }
  token = typed;
  sessionStorage.setItem(TOKEN_KEY, token);
  tokenMissing = false;
  showNote('');
  startPolling();
};

byId('token-cancel').onclick = () => byId('token-dialog').close();
byId('note-token').onclick = () => askForToken('');
byId('token-forget').onclick = () => {
  sessionStorage.removeItem(TOKEN_KEY);
  location.reload();
};

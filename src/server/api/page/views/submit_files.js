// The form for a new task: files that are laid down before the command, and those that are handed back. A file is
// uploaded as soon as it is chosen; the task names it by its hash.

// The server takes a number of transfers at once: so often it is asked again, after so long. In milliseconds.
const MOST_UPLOAD_TRIES = 30;
const UPLOAD_PAUSE_MS = 1000;

// The files of the form: {key, name, size, entry} once they are on the server, where `entry` is what the task
// says of them; `sent`, `request` and `error` while they are on their way. The row's fields are in `fields`.
let formFiles = [];
let fileKeys = 0;
// What the task that the form was filled in from hands back, with its settings.
let copiedFetch = [];

function addFormFile(file) {
  fileKeys += 1;
  formFiles.push({key: fileKeys, ...file});
  return formFiles.at(-1);
}

function renderFormFiles() {
  renderList(byId('form-files'), formFiles, file => file.key, makeFormFileRow);
}

function makeFormFileRow(file) {
  const {entry} = file;
  const name = element('b', 'ellipsis');
  const status = element('span', 'num soft ellipsis');
  const bar = element('div', 'bar', element('span', 's-running'));
  const drop = element('button', {type: 'button', onclick: () => dropFormFile(file)}, 'Remove');
  const input = (label, value, placeholder) => {
    const el = element('input', {class: 'mono', placeholder, 'aria-label': label});
    el.value = value ?? '';
    return el;
  };
  const path = input('Path', entry.path, `where to: $SIDEBIKE_FILES/${safeLine(file.name)}`);
  const mode = input('Mode', entry.mode, 'mode: 0644');
  const unpack = element('select', {'aria-label': 'Unpack'});
  for (const [value, text] of [['', 'as it is'], ['tar', 'unpack tar'], ['tar.gz', 'unpack tar.gz']]) {
    unpack.append(element('option', {value}, text));
  }
  unpack.value = entry.unpack ?? '';
  file.fields = {path, mode, unpack};
  return {
    el: element('li', 'form-file', name, status, drop, bar, path, mode, unpack),
    update() {
      setLine(name, file.name);
      const {sent, size, error} = file;
      const isOnItsWay = sent !== undefined;
      const progress = isOnItsWay ? formatBytes(sent) + ' of ' : '';
      setText(status, error || progress + formatBytes(size));
      setClass(status, error ? 'error' : 'num soft ellipsis');
      setVisible(bar, isOnItsWay);
      if (isOnItsWay) bar.firstChild.style.width = (size ? 100 * sent / size : 100) + '%';
    },
  };
}

function dropFormFile(file) {
  file.request?.abort();
  formFiles = formFiles.filter(other => other !== file);
  renderFormFiles();
}

// Sends the bytes; `fetch` would not tell how many have gone.
function uploadFile(file, content, tries = 1) {
  const request = new XMLHttpRequest();
  Object.assign(file, {request, sent: 0});
  const end = error => {
    Object.assign(file, {request: null, sent: undefined, error});
    renderFormFiles();
  };
  request.open('PUT', `${BASE}api/v1/file/${encodeURIComponent(file.name)}`);
  if (token) request.setRequestHeader('Authorization', 'Bearer ' + token);
  request.upload.onprogress = ({loaded}) => {
    file.sent = loaded;
    renderFormFiles();
  };
  request.onerror = () => end('broke off; choose it again');
  request.onload = () => {
    const answer = {status: request.status, content: request.responseText};
    if (answer.status === 200) {
      const {sha256, size} = parseEnvelope(answer).data;
      Object.assign(file.entry, {sha256, size});
      end('');
    } else if (request.getResponseHeader('Retry-After') && tries < MOST_UPLOAD_TRIES) {
      setTimeout(() => {
        if (formFiles.includes(file)) uploadFile(file, content, tries + 1);
      }, UPLOAD_PAUSE_MS);
    } else end(safeLine(failureOf(answer).message));
  };
  request.send(content);
  renderFormFiles();
}

// The files as the API wants them; undefined if there are none. Throws while one is on its way.
function readFormFiles() {
  if (!formFiles.length) return undefined;
  return formFiles.map(({name, entry, fields}) => {
    if (!entry.sha256) throw new Error(`File ${name}: is not on the server yet`);
    const path = fields.path.value.trim() || undefined;
    return {
      ...entry,
      name: path ? undefined : name,
      path,
      mode: fields.mode.value.trim() || undefined,
      unpack: fields.unpack.value || undefined,
    };
  });
}

// The paths that are handed back, with the settings that they had in the task that was copied.
function readFetch() {
  const paths = readLines('fetch');
  const known = path => copiedFetch.find(fetch => fetch.path === path);
  return paths.length ? paths.map(path => known(path) ?? {path}) : undefined;
}

function readFiles() {
  return {files: readFormFiles(), fetch: readFetch(), filesTimeout: readDuration('filesTimeout')};
}

// Fills in the files of a task.
function copyFiles({files = [], fetch = []}) {
  for (const file of formFiles) file.request?.abort();
  formFiles = [];
  copiedFetch = fetch;
  for (const entry of files) {
    addFormFile({name: entry.name ?? lastPart(entry.path), size: entry.size, entry: {...entry}});
  }
  renderFormFiles();
}

function fileValues({fetch = [], filesTimeout}) {
  return {fetch: fetch.map(({path}) => path).join('\n'), filesTimeout};
}

byId('choose-files').onchange = event => {
  for (const content of event.target.files) {
    uploadFile(addFormFile({name: content.name, size: content.size, entry: {}}), content);
  }
  // The same file may be chosen again.
  event.target.value = '';
};

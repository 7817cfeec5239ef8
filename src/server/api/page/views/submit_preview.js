// Beside the form for a new task: the machines that it would run on.

const MOST_PREVIEW_LABELS = 100;

// False once the server has refused to preview: it is older, or the token is for reading only.
let serverPreviews = true;
// What the last preview was for, and how many there have been: a late answer is dropped.
let previewedFor = '';
let previewCount = 0;

// `again`: even if nothing in the form has changed, because the machines may have.
async function renderPreview({again = false} = {}) {
  const pattern = field('pattern').value;
  const anyOne = field('mode').value === 'any';
  const key = pattern + anyOne;
  if (key === previewedFor && !again) return;
  previewedFor = key;
  previewCount += 1;
  const count = previewCount;
  const preview = await previewOf(pattern);
  if (count === previewCount) showPreview(preview, anyOne);
}

// {labels, byServer}, or {problem} if nothing can be said.
async function previewOf(pattern) {
  if (!pattern) return {problem: 'Which machines? .* matches all of them.'};
  if (serverPreviews) {
    try {
      return {labels: await previewByServer(pattern), byServer: true};
    } catch (error) {
      if (error.status === 403 || /dryRun/.test(error.message)) serverPreviews = false;
      else if (error.status === 400) return {problem: safeLine(error.message)};
    }
  }
  try {
    return {labels: previewHere(pattern), byServer: false};
  } catch {
    return {problem: 'This pattern cannot be previewed here; the server decides.'};
  }
}

async function previewByServer(pattern) {
  const task = {machinePattern: pattern, detail: {command: 'true'}};
  const {data} = await post('task?dryRun=1', task);
  return data.machines.map(machine => machine.label ?? machine);
}

// The server's expressions are not quite those of a browser, so this is a guess.
function previewHere(pattern) {
  const ignoreCase = pattern.startsWith('(?i)');
  const expression = new RegExp(pattern.replace(/^\(\?i\)/, ''), ignoreCase ? 'i' : '');
  return machines
    .filter(machine => machine.state === 'online' && expression.test(machine.label))
    .map(machine => machine.label);
}

function showPreview({labels = [], byServer, problem}, anyOne) {
  const count = labels.length;
  const machineCount = plural(count, 'machine');
  let title = 'No machine matches now';
  let button = 'Run';
  let hint = byServer
    ? 'As the server sees it now.'
    : 'A preview, made in this browser; the server decides.';
  if (problem) {
    title = 'No preview';
    hint = problem;
  } else if (count) {
    title = anyOne ? 'One of ' + machineCount : machineCount;
    button = 'Run on ' + (anyOne ? 'one of ' + count : machineCount);
  } else {
    hint = 'The task will wait for the first that appears within its ttl. ' + hint;
  }
  setText(byId('preview-title'), title);
  setText(byId('preview-hint'), hint);
  setText(byId('submit-button'), button);
  const groups = [...groupBy(labels, label => label)].slice(0, MOST_PREVIEW_LABELS);
  renderList(byId('preview-list'), groups, ([label]) => label, makePreviewLabel);
}

function makePreviewLabel() {
  return {
    el: element('li', 'ellipsis'),
    update([label, same]) {
      setLine(this.el, label + (same.length > 1 ? ` ×${same.length}` : ''));
    },
  };
}

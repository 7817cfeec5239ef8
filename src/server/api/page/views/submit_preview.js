// Beside the form for a new task: the machines that it would run on, and those that it would spare.

const MOST_PREVIEW_ROWS = 100;

// False once the server has refused to preview: it is older, or the token is for reading only.
let serverPreviews = true;
// What the last preview was for, and how many there have been: a late answer is dropped.
let previewedFor = '';
let previewCount = 0;
// What the button says if it is not for a schedule.
let runButtonText = 'Run';

// `again`: even if nothing in the form has changed, because the machines may have.
async function renderPreview({again = false} = {}) {
  let targets;
  let preview;
  try {
    targets = readTargets();
  } catch (error) {
    preview = {problem: safeLine(error.message)};
  }
  const key = JSON.stringify([targets, preview]);
  if (key === previewedFor && !again) return;
  previewedFor = key;
  previewCount += 1;
  const count = previewCount;
  preview ??= await previewOf(targets);
  if (count === previewCount) showPreview(preview, targets?.mode === 'any');
}

// What the server answers, or {problem} if nothing can be said.
async function previewOf(targets) {
  if (targets.machinePattern === '') return {problem: 'Which machines? .* matches all of them.'};
  if (serverPreviews) {
    try {
      return {...await previewByServer(targets), byServer: true};
    } catch (error) {
      if (error.status === 403 || /dryRun/.test(error.message)) serverPreviews = false;
      else if (error.status === 400) return {problem: safeLine(error.message)};
    }
  }
  try {
    return {machines: previewHere(targets)};
  } catch {
    return {problem: 'This cannot be previewed here; the server decides.'};
  }
}

// With the id that the task will have: the id decides which machines `maxTargets` spares.
async function previewByServer(targets) {
  const task = {...targets, id: draft.id, detail: {command: 'true'}};
  return (await post('task?dryRun=1', task)).data;
}

// The server's expressions are not quite those of a browser, and nothing is counted: this is a guess.
function previewHere({machinePattern = '', exclude, hosts, machineTags, instances}) {
  const [label, excluded, host] = [machinePattern, exclude, hosts].map(browserPattern);
  const tags = Object.entries(machineTags ?? {})
    .map(([name, pattern]) => [name, browserPattern(pattern)]);
  const hasTag = (has, name, value) => Object.hasOwn(has ?? {}, name) && value.test(has[name]);
  return machines.filter(machine =>
    machine.state === 'online' &&
    label.test(machine.label) &&
    !(exclude && excluded.test(machine.label)) &&
    host.test(machine.host) &&
    tags.every(([name, value]) => hasTag(machine.tags, name, value)) &&
    (instances?.includes(machine.instance) ?? true));
}

function browserPattern(pattern = '') {
  return new RegExp(pattern.replace(/^\(\?i\)/, ''), pattern.startsWith('(?i)') ? 'i' : '');
}

function showPreview(preview, anyOne) {
  const {machines: chosen = [], spared = [], plan = [], ok = true, byServer, problem} = preview;
  const count = chosen.length;
  const machineCount = plural(count, 'machine');
  let title = 'No machine matches now';
  let button = 'Run';
  let hint = byServer
    ? 'As the server sees it now.'
    : 'A preview, made in this browser; the server decides.';
  if (problem) {
    title = 'No preview';
    hint = problem;
  } else if (!ok) {
    title = 'The server would refuse this now';
    hint = safeLine(preview.msg);
  } else if (count) {
    title = anyOne ? 'One of ' + machineCount : machineCount;
    button = 'Run on ' + (anyOne ? 'one of ' + count : machineCount);
  } else {
    hint = 'The task will wait for the first that appears within its ttl. ' + hint;
  }
  setText(byId('preview-title'), title);
  setClass(byId('preview-title'), ok ? '' : 'error');
  setText(byId('preview-hint'), hint);
  setText(byId('preview-numbers'), byServer ? previewNumbers(preview) : '');
  runButtonText = button;
  renderSubmitButton();
  const ordered = plan.length ? chosen : byLabel(chosen);
  const parts = plan.length > 1 ? plan : [count];
  const steps = parts.map((until, index) => ordered.slice(parts[index - 1] ?? 0, until));
  const rows = steps.flatMap((step, index) => [
    steps.length > 1 && {key: 'step ' + index, heading: `Step ${index + 1}:`, count: step.length},
    ...previewRows(step, index),
  ]).filter(Boolean);
  renderPreviewRows(byId('preview-list'), rows);
  setVisible(byId('preview-spared-title'), spared.length);
  renderPreviewRows(byId('preview-spared'), previewRows(byLabel(spared), 'spared'));
}

function renderSubmitButton() {
  setText(byId('submit-button'), scheduleButtonText() || runButtonText);
}

function byLabel(targets) {
  return [...targets].sort((a, b) => compareNames(a.label, b.label));
}

// "10 match · 2 spared · 1 offline · started by step: 1, 3, 8"; '' if the title says it all.
function previewNumbers({ok, matched, spared, offline, draining, plan}) {
  const counts = [[spared?.length, 'spared'], [offline, 'offline'], [draining, 'draining']];
  const others = joinPresent([
    ...counts.map(([count, name]) => count > 0 && `${formatCount(count)} ${name}`),
    plan?.length > 1 && 'started by step: ' + joinFirst(plan, 10),
  ]);
  return others || !ok ? joinPresent([`${formatCount(matched)} match`, others]) : '';
}

// A row for each label.
function previewRows(targets, part) {
  return [...groupBy(targets, target => target.label)].map(([label, same]) => ({
    key: `${part} ${label}`,
    heading: '',
    label,
    count: same.length,
    instances: same.map(target => target.instance),
  }));
}

function renderPreviewRows(box, rows) {
  const shown = rows.slice(0, MOST_PREVIEW_ROWS);
  const rest = sum(rows.slice(MOST_PREVIEW_ROWS).map(row => row.heading ? 0 : row.count));
  if (rest) shown.push({key: 'rest', heading: 'and', count: rest});
  renderList(box, shown, row => row.key, makePreviewRow);
}

function makePreviewRow() {
  return {
    el: element('li', 'ellipsis'),
    update({heading, label, count, instances}) {
      setClass(this.el, heading ? 'soft' : 'ellipsis');
      const times = count > 1 ? ` ×${count}` : '';
      setText(this.el, heading ? `${heading} ${plural(count, 'machine')}` : safeLine(label) + times);
      this.el.title = heading ? '' : safeLine(`${label}, instance ${joinFirst(instances, 5)}`);
    },
  };
}

// The form for a new task: which machines are meant, how many of them, and the rollout. Numbers are
// written as on the command line: 5, 25%, 2..10.

const ROLLOUT_FIELDS =
  ['concurrency', 'pause', 'maxFailures', 'canary', 'order', 'stopRunning'];

// What the form says about the machines, as the API wants it; what is empty is undefined. Throws if a
// field cannot be read.
function readTargets() {
  const instances = readList('instances');
  const keep = readShare('keepAlive');
  const pool = readText('pool');
  return {
    machinePattern: readText('pattern') ?? (instances ? undefined : ''),
    exclude: readText('exclude'),
    machineTags: readPairs('machineTags', 'Tags: expected NAME=PATTERN'),
    hosts: readText('hosts'),
    instances,
    expect: readExpect(),
    maxTargets: readShare('maxTargets'),
    keepAlive: pool ? {keep, pool} : keep,
    rollout: readRollout(),
    mode: field('mode').value === 'any' ? 'any' : undefined,
    lateJoin: field('lateJoin').checked || undefined,
  };
}

function readText(name) {
  return field(name).value || undefined;
}

function readList(name) {
  const items = field(name).value.split(/[\s,]+/).filter(Boolean);
  return items.length ? items : undefined;
}

// Lines of NAME=value as an object.
function readPairs(name, expected) {
  const lines = field(name).value.split('\n').filter(line => line.trim());
  if (!lines.length) return undefined;
  return Object.fromEntries(lines.map(line => {
    const equals = line.indexOf('=');
    if (equals < 1) throw new Error(`${expected}, got ${line}`);
    return [line.slice(0, equals).trim(), line.slice(equals + 1)];
  }));
}

// A number, or a percentage as text. What is neither is left to the server, which says what is wrong.
function shareOf(text) {
  return /^\d+$/.test(text) ? Number(text) : text;
}

function readShare(name) {
  const text = field(name).value.trim();
  return text ? shareOf(text) : undefined;
}

function readExpect() {
  const text = field('expect').value.trim();
  const range = /^(\d*)\.\.(\d*)$/.exec(text);
  if (!range) return readShare('expect');
  const [min, max] = range.slice(1).map(digits => digits ? Number(digits) : undefined);
  return {min, max};
}

function readRollout() {
  const rollout = {
    concurrency: readShare('concurrency'),
    steps: readList('steps')?.map(shareOf),
    pause: readText('pause'),
    maxFailures: readShare('maxFailures'),
    stopRunning: readText('stopRunning') && field('stopRunning').value === 'true',
    canary: readText('canary'),
    order: readText('order'),
  };
  return Object.values(rollout).some(value => value !== undefined) ? rollout : undefined;
}

// The values of the form's fields for what a task says about the machines.
function targetValues({machinePattern, instances, machineTags, expect, keepAlive, rollout}) {
  const values = {
    pattern: machinePattern,
    instances: instances?.join(' '),
    machineTags: pairsText(machineTags),
    expect: formatExpect(expect),
    keepAlive: keepAlive?.keep ?? keepAlive,
    pool: keepAlive?.pool,
    steps: rollout?.steps?.join(', '),
  };
  for (const name of ROLLOUT_FIELDS) values[name] = rollout?.[name];
  return values;
}

function pairsText(pairs, separator = '\n') {
  return Object.entries(pairs ?? {}).map(pair => pair.join('=')).join(separator);
}

function formatExpect(expect) {
  return expect instanceof Object ? `${expect.min ?? ''}..${expect.max ?? ''}` : expect;
}

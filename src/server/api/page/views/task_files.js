// One task: the files that it lays down, and those that its executions have handed back, with links to them.

// A task on many machines may have handed back thousands.
const MOST_TASK_FILES = 200;

function renderTaskFiles(task) {
  const rows = [...(task.files ?? []).map(laidDown), ...handedBack(task)];
  setVisible(byId('task-files'), rows.length);
  setText(byId('task-files-summary'), filesSummary(rows, task));
  renderList(byId('task-files-list'), rows.slice(0, MOST_TASK_FILES), row => row.key, makeTaskFileRow);
}

function laidDown(file, index) {
  const {sha256, size, name, path, mode, unpack, strip, ifExists, inPlace} = file;
  return {
    key: 'down ' + index,
    what: 'Laid down',
    where: path ?? `$SIDEBIKE_FILES/${name}`,
    name: name ?? lastPart(path),
    sha256,
    note: joinPresent([
      formatBytes(size),
      mode && 'mode ' + mode,
      unpack && 'unpacked from ' + unpack,
      strip && `without ${strip} leading parts`,
      ifExists && `if it exists: ${ifExists}`,
      inPlace && 'in place',
      file.remove && 'removed afterwards',
    ]),
  };
}

function handedBack(task) {
  return task.result.flatMap(execution => (execution.files ?? []).map(({path, sha256, size, truncated}) => ({
    key: `back ${execution.execution} ${path} ${sha256}`,
    what: labelOf(execution),
    where: path,
    name: `${execution.machineLabel}-${lastPart(path)}`,
    sha256,
    note: joinPresent([formatBytes(size), truncated && 'only the beginning']),
  })));
}

function filesSummary(rows, {fetch = []}) {
  const asked = fetch.map(({path}) => path);
  return joinPresent([
    asked.length && 'To be handed back: ' + joinFirst(asked.map(safeLine), 5),
    rows.length > MOST_TASK_FILES && `the first ${MOST_TASK_FILES} of ${formatCount(rows.length)}`,
  ]);
}

function makeTaskFileRow({sha256, name}) {
  const what = element('span', 'ellipsis soft');
  const where = element('code', 'ellipsis');
  const note = element('span', 'num soft ellipsis');
  return {
    el: element('li', {}, element('div', 'row task-file', what, where, note, makeDownload(sha256, name))),
    update(row) {
      setLine(what, row.what);
      setLine(where, row.where);
      setLine(note, row.note);
    },
  };
}

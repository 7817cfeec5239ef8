// The form for a new task: its undo. The server says what is wrong with it.

const UNDO_SETTINGS = {undoTimeout: 'timeout', patience: 'patience', deadman: 'deadman'};

// The undo as the API wants it, undefined if nothing of it is filled in.
function readUndo() {
  const undo = {lock: readText('lock')};
  const words = name => readText(name)?.trimEnd().split('\n');
  if (field('undoArgv').checked) undo.argv = words('undo');
  else undo.command = readText('undo');
  if (field('checkArgv').checked) undo.checkArgv = words('undoCheck');
  else undo.check = readText('undoCheck');
  for (const [name, member] of Object.entries(UNDO_SETTINGS)) undo[member] = readDuration(name);
  return Object.values(undo).some(value => value !== undefined) ? undo : undefined;
}

// The values of the form's fields for the undo of a task.
function undoValues(undo) {
  const values = {
    undo: undo?.command ?? undo?.argv?.join('\n'),
    undoCheck: undo?.check ?? undo?.checkArgv?.join('\n'),
    lock: undo?.lock,
  };
  for (const [name, member] of Object.entries(UNDO_SETTINGS)) values[name] = undo?.[member];
  return values;
}

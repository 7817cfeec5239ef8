// What can be asked of agents: to take no more work, to take work again, to end.

const CREW_ORDERS = {
  drain: {
    verb: 'Drain',
    consequence:
      'They finish what they have and take no more commands, until they are told to take work again.',
    suits: ({state, wanted}) => state === 'online' && wanted !== 'drain',
  },
  undrain: {
    verb: 'Take work again',
    consequence: 'They take commands again.',
    suits: ({state, wanted}) => state === 'draining' || wanted === 'drain',
  },
  shutdown: {
    verb: 'Shut down',
    consequence:
      'The agents end, as after TERM: what still runs after their grace is killed. ' +
      'Nothing starts them again from here.',
    suits: ({state, wanted}) => state !== 'offline' && wanted !== 'shutdown',
  },
};

// Makes the buttons PREFIX-drain, PREFIX-undrain and PREFIX-shutdown order the machines that `list` gives.
function makeCrewButtons(prefix, list) {
  for (const what of Object.keys(CREW_ORDERS)) {
    onClick(byId(`${prefix}-${what}`), () => orderMachines(what, list()));
  }
}

function renderCrewButtons(prefix, list) {
  for (const [what, {suits}] of Object.entries(CREW_ORDERS)) {
    setVisible(byId(`${prefix}-${what}`), list.some(suits));
  }
}

async function orderMachines(what, list) {
  const {verb, consequence, suits} = CREW_ORDERS[what];
  const meant = list.filter(suits);
  const names = joinFirst([...new Set(meant.map(({label}) => safeLine(label)))], 5);
  const title = `${verb}: ${plural(meant.length, 'machine')}?`;
  if (!await confirmFirst(title, `${names}. ${consequence}`, verb)) return;
  for (const {instance} of meant) await post(`machine/${encodeURIComponent(instance)}/${what}`);
  startPolling();
}

// Whether the agent is older than the server that this page came from.
function isBehind({version}) {
  return Boolean(version) && compareNames(version, SERVER_VERSION) < 0;
}

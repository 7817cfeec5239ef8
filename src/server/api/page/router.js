// From the address to the view: #/NAME/PART/…?QUERY. To add a view see shared/view.js.

const VIEWS = {
  '': homeView,
  machines: machinesView,
  machine: machineView,
  schedules: schedulesView,
  schedule: scheduleView,
  task: taskView,
  group: groupView,
  overview: overviewView,
  files: filesView,
  submit: submitView,
};

function openView() {
  const {path, query} = parseAddress(location.hash);
  const [name, part] = path;
  const view = Object.hasOwn(VIEWS, name) ? VIEWS[name] : null;
  if (!view || (view.needsName && !part)) {
    showGone('There is no such page', location.hash);
    return;
  }
  const isNew = view !== currentView || part !== currentView.part;
  currentView = view;
  currentView.part = part;
  showSection('view-' + view.id);
  for (const tab of ['home', 'machines', 'schedules', 'overview']) {
    setFlag(byId('nav-' + tab), 'aria-current', view.tab === tab);
  }
  if (isNew) {
    document.title = `${view.title} · sidebike`;
    scrollTo(0, 0);
    if (!tokenMissing) showNote('');
  }
  view.open(path.slice(1), query);
  startPolling();
}

function parseAddress(hash) {
  const [path, query] = hash.replace(/^#\/?/, '').split('?');
  try {
    return {path: path.split('/').map(decodeURIComponent), query: new URLSearchParams(query)};
  } catch {
    // Not an address that this page makes: a lone %.
    return {path: [], query: new URLSearchParams()};
  }
}

// Nothing that is typed here is prose or personal data.
for (const el of document.querySelectorAll('input, textarea')) {
  el.spellcheck = false;
  el.autocomplete = 'off';
  el.autocapitalize = 'off';
}

onhashchange = openView;
openView();

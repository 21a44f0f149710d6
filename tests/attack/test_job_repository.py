"""`--workspace rw`: a job makes git run something where its user, or a prompt, only asks for `git status`."""

import os
import subprocess

import pytest

# What every way ends in: a command that leaves a file behind on the host.
PRELUDE = r"""
OWN=$PWD
evil() { printf '[core]\n\trepositoryformatversion = 0\n\tfsmonitor = "touch %s/pwned; false"\n%b' "$OWN" "$2" > "$1"; }
program() { rm -f "$1"; printf '#!/bin/sh\ntouch %s/pwned\n' "$OWN" > "$1"; chmod 755 "$1"; }
"""
BARE = r"""
mkdir -p objects refs; echo 'ref: refs/heads/x' > HEAD; evil config '\tbare = false\n\tworktree = .\n'
mkdir elsewhere; cp -r HEAD objects refs config elsewhere
mv commondir moved; rmdir commondir; echo elsewhere > commondir
"""
CHANGE = r"""
for file in shared.cfg sub/more.cfg .git/inside.cfg; do
    evil "$file"; rm -f "$file"; mv sub moved; mkdir -p sub; evil "$file"
done
for file in tools/clean tools/monitor .githooks/post-index-change; do
    program "$file"; mv "${file%/*}" moved; mkdir -p "${file%/*}"; program "$file"
done
mkdir elsewhere; cp -r .git/HEAD .git/objects .git/refs elsewhere; evil elsewhere/config
echo ../elsewhere > .git/commondir; rm -f .git/commondir; mv .git/commondir .git/x; echo ../elsewhere > .git/commondir
echo changed > file; echo more > .git/description
"""
INNER = r"""
evil .real/config; mv .real moved; mkdir .real; evil .real/config; echo x > .real/description
mkdir -p .real/hooks; program .real/hooks/post-index-change; rm -f .git; echo 'gitdir: moved' > .git
"""
CONFIG = """
[include]
    path = ../shared.cfg
[includeIf "gitdir:**"]
    path = ../sub/more.cfg ; and one in the directory itself
    path = "inside.cfg"
[filter "tidy"]
    clean = sh tools/clean %f
[core]
    fsmonitor = tools/monitor
"""


@pytest.fixture
def project(launch, area, identities):
    """A directory of who launches, and what runs git there as that user, outside."""
    own, who = area.dir(launch.as_user) / "project", identities[launch.as_user]
    home = area.dir(launch.as_user) / "git-home"
    for path in (own, home):
        path.mkdir()
    (home / ".gitconfig").write_text("[user]\nname = n\nemail = e@e\n[core]\nhooksPath = .githooks\n")

    def git(*words):
        env = {"PATH": os.environ["PATH"], "HOME": str(home)}
        subprocess.run(["chown", "-R", f"{who.uid}:{who.gid}", own, home], check=True)
        command = ["git", "-C", str(own), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, **who.popen_options())
        assert not (own / "pwned").exists(), (words, done.stdout, done.stderr)
        return done

    git.own, git.home = own, home
    git("version")
    return git


def attack(launch, project, script, *says):
    """Let a job do it, and ask git for the state while it runs and afterwards."""
    words = f"{PRELUDE}exec 3>&2 2>/dev/null; {script}\necho ready; read -r _; exit 0"
    process = launch(
        *("--workspace", "rw", "--", "sh", "-c", words),
        popen=True,
        cwd=project.own,
        env={"HOME": str(project.home)},
        **dict.fromkeys(("stdin", "stdout", "stderr"), -1),
    )
    out = process.stdout.readline()
    project("status")
    _, err = process.communicate("go\n", timeout=60)
    assert (out, process.returncode) == ("ready\n", 0), err
    assert all(word in err for word in says), err
    return project("status")


def test_the_working_directory_does_not_become_a_repository(launch, project):
    """git takes a directory for one that has HEAD, objects and refs, whatever it is called."""
    attack(launch, project, BARE, "/HEAD: with it the working directory was a repository")
    assert "commondir" not in os.listdir(project.own)
    project("init", "-q")
    attack(launch, project, "rm -r .git/HEAD .git/objects; mkdir moved; mv HEAD moved;" + BARE, "removed")


def test_what_the_configuration_names(launch, project):
    """Files that it includes, programs that it runs, hooks of the user's own configuration."""
    project("init", "-q")
    (project.own / "tools").mkdir()
    for name in ("clean", "monitor"):
        (project.own / "tools" / name).write_text("#!/bin/sh\ncat\n")
        (project.own / "tools" / name).chmod(0o755)
    (project.own / "file").write_text("text\n")
    (project.own / ".gitattributes").write_text("file filter=tidy\n")
    project("add", ".")
    with (project.own / ".git/config").open("a") as file:
        file.write(CONFIG)
    attack(launch, project, CHANGE)
    assert (project.own / ".git/description").read_text() == "more\n"
    assert not {"commondir", "config.worktree", "inside.cfg"} & set(os.listdir(project.own / ".git"))


def test_a_repository_that_lies_elsewhere_in_the_workspace(launch, project):
    """`git init --separate-git-dir`: .git is a file then, and says where."""
    project("init", "-q", "--separate-git-dir", str(project.own / ".real"))
    attack(launch, project, INNER)
    assert (project.own / ".real/description").read_text() == "x\n"
    assert "pwned" not in (project.own / ".real/config").read_text()


def test_submodules_are_told(launch, project):
    """git looks into them where it is asked for the state of what they are in: nothing is in the way of that."""
    project("init", "-q")
    script = (
        "export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e; touch file sub-file;"
        "git init -q sub && git -C sub commit -q --allow-empty -m x && git add . 2>/dev/null"
    )
    done = launch("--workspace", "rw", "--", "sh", "-c", script, cwd=project.own)
    assert "the job made submodules: sub; git status would look into them" in done.stderr, done.stderr
    again = launch("--workspace", "rw", "--", "git", "rm", "-q", "--cached", "file", cwd=project.own)
    assert (again.returncode, again.stderr) == (0, "")


def test_a_repository_works_as_ever(launch, project):
    """A job may commit, switch branches and tidy up. A bare repository as the working directory takes new objects."""
    project("init", "-q", "-b", "main")
    (project.own / "file").write_text("text\n")
    project("status")
    script = (
        "set -e; git config user.name >/dev/null || export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n "
        "GIT_COMMITTER_EMAIL=e; git add file; git commit -qm first; git switch -qc other; echo more >> file;"
        "git commit -qam second; git switch -q main; git merge -q other; git gc -q; git fsck;"
        "git status --porcelain"
    )
    done = launch("--workspace", "rw", "--", "sh", "-c", script, cwd=project.own)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert project("log", "--format=%s").stdout == "second\nfirst\n"
    project("init", "-q", "--bare", "bare")
    names = "hooks/x config config.worktree commondir modules/x"
    script = f"for name in {names}; do echo x > $name; done; git hash-object -w HEAD"
    done = launch("--workspace", "rw", "--", "sh", "-c", script, cwd=project.own / "bare")
    assert done.stderr.count("Read-only file system") + done.stderr.count("Is a directory") == 5, done.stderr
    assert project("-C", "bare", "cat-file", "-p", done.stdout.strip()).stdout == "ref: refs/heads/master\n"

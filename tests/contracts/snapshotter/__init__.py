"""What every storage driver must do, whatever it is made of.

A driver's test module is one class:

    class TestOverlay2(SnapshotterContract):
        driver_name = "overlay2"

and what it says of scale and place, if anything, is in Words. Trees are written and read through real mounts. The cases
are those of two suites, and what the second lists as not written yet:

containers/storage, drivers/graphtest
    CreateEmpty, CreateBase, CreateSnap         Content: a_tree_without_*, everything_*, the_root_directory_*
    DeepLayerRead, MountMoreThan42Layers        Stability: a_deep_tree_is_read (`depth`)
                                                Crowd: many_are_mounted_at_once (`crowd`)
    ListLayers                                  Graph: walk_gives_parents_first
    SetQuota                                    Wishes: a_container_is_kept_to_its_size (`quota`)
    CreateFromTemplate, DiffApply, Changes      Differ
    Echo                                        its trees are Content: echo, its sets Differ
    ConcurrentAccess, InitStaleCleanup          Sharing; CrashContract in tests/drivers/crashing.py
    SubvolDelete                                the tests of the driver btrfs
containerd, core/snapshots/testsuite
    Basic, Transitivity, StatActive, StatComitted, StatInWalk, Walk, Update, Remove, RemoveIntermediateSnapshot,
    PreareViewFailing, CloseTwice               Graph: a_layer_on_a_layer, siblings_*, parents_are_transitive, stat_*,
                                                walk_*, update_*, remove_*, a_key_is_taken_*, only_what_is_*, close_*
    LayerFileupdate, RemoveDirectoryInLowerLayer, DeletedFilesInChildSnapshot, MoveFileFromLowerLayer, Chown,
    DirectoryPermissionOnCommit, ViewReadonly, RootPermission
                                                Content: file_updates_*, a_lower_directory_is_removed, files_deleted_*,
                                                a_lower_file_is_moved, chown_*, directory_permissions_*, views_*, …
    Rename (not run there on union drivers)     Content: a_lower_directory_is_moved, a_new_{directory,file}_is_moved_*
    128LayersMount                              Stability: a_growing_tree_* (`compared_layers`)
    RemoveAfterCommit, RemoveInWalk, Chmod      Graph: remove_after_commit, remove_while_walking; Content: chmod_*
    UnixDomainSockets, DirectoryInodeStability, OpenFileInodeStability, GetCWD
                                                Stability: unix_*, directory_inodes_*, inodes_of_*, the_working_*
    benchsuite                                  Content: a_few_bytes_in_the_middle_of_files (`bulk`)
"""

from tests.contracts.snapshotter.content import Content
from tests.contracts.snapshotter.crowd import Crowd
from tests.contracts.snapshotter.differ import Differ
from tests.contracts.snapshotter.graph import Graph
from tests.contracts.snapshotter.sharing import Sharing
from tests.contracts.snapshotter.stability import Stability
from tests.contracts.snapshotter.wishes import Wishes


class SnapshotterContract(Graph, Content, Stability, Crowd, Sharing, Wishes, Differ):
    """Everything; see Words for what a driver's class can say of itself."""

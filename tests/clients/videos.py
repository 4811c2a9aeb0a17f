"""The server, as the openai package sees it: client.videos, unchanged.

    videos.py URL TOKEN PICTURE
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings

import openai
from parts import Parts

url, token, picture = sys.argv[1:4]
warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own service
SMALL = {"frames": 5, "steps": 2}
client = openai.OpenAI(api_key=token, base_url=url + "/v1", max_retries=0, timeout=60)
videos = client.videos
parts = Parts("openai " + openai.__version__)
made = []


def probe(data):
    """Width, height and the frames that can be decoded."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as f:
        f.write(data)
        f.flush()
        text = subprocess.run(["ffprobe", "-v", "error", "-select_streams", "v", "-count_frames", "-show_entries", "stream=width,height,nb_read_frames",
                               "-of", "json", f.name], check=True, capture_output=True, timeout=60).stdout
    s = json.loads(text)["streams"][0]
    return s["width"], s["height"], int(s["nb_read_frames"])


with parts("create with a picture as a file, a size and more options than the package knows"):
    with open(picture, "rb") as f:
        one = videos.create(prompt="The camera pans slowly to the left.", input_reference=f, size="160x96", extra_body={**SMALL, "seed": 7})
    made.append(one.id)
    assert one.object == "video" and one.status in ("queued", "in_progress"), one
    assert one.size == "160x96" and one.prompt == "The camera pans slowly to the left." and one.progress == 0, one

with parts("create_and_poll waits for the end"):
    with open(picture, "rb") as f:
        two = videos.create_and_poll(prompt="Zoom in.", input_reference=f, size="160x96", seconds="1", extra_body={"steps": 2}, poll_interval_ms=200)
    made.append(two.id)
    assert two.status == "completed" and two.progress == 100 and two.completed_at >= two.created_at, two
    assert two.error is None and two.expires_at > two.completed_at, two

with parts("retrieve, and poll a job that began before"):
    one = videos.poll(made[0], poll_interval_ms=200)
    assert one.status == "completed", one
    assert videos.retrieve(made[0]).id == made[0]

with parts("download_content gives the video that was asked for"):
    data = videos.download_content(made[0]).read()
    assert probe(data) == (160, 96, 5), probe(data)
    frames = probe(videos.download_content(made[1], variant="video").read())[2]
    assert frames == 17, frames  # a second at 16 a second, as 4k + 1
    with tempfile.TemporaryDirectory() as folder:
        videos.download_content(made[0]).write_to_file(os.path.join(folder, "out.mp4"))
        assert open(os.path.join(folder, "out.mp4"), "rb").read() == data

with parts("download_content gives a thumbnail and a sheet of pictures"):
    for variant in ("thumbnail", "spritesheet"):
        answer = videos.download_content(made[0], variant=variant)
        data = answer.read()
        assert data[:3] == b"\xff\xd8\xff", data[:8]
        assert answer.response.headers["content-type"] == "image/jpeg"

with parts("list, newest first, in pages"):
    page = videos.list(limit=1)
    assert len(page.data) == 1 and page.data[0].id == made[1], page
    assert [v.id for v in page][:2] == [made[1], made[0]], [v.id for v in page]  # asks for the next pages
    assert [v.id for v in videos.list(order="asc", limit=100)][:1] == [made[0]]

with parts("a picture as a data URL, in JSON"):
    import base64

    with open(picture, "rb") as f:
        data_url = "data:image/jpeg;base64," + base64.b64encode(f.read()).decode()
    three = client.post("/videos", cast_to=object, body={"prompt": "x", "input_reference": {"image_url": data_url}, "size": "160x96", **SMALL})
    made.append(three["id"])
    assert videos.poll(three["id"], poll_interval_ms=200).status == "completed"

with parts("mistakes are the package's own exceptions, in the server's words"):
    try:
        videos.create(prompt="x", extra_body={"framse": 5})
        raise AssertionError("an unknown field was taken")
    except openai.BadRequestError as e:
        assert e.param == "framse" and "frames" in e.message and e.type == "invalid_request_error", e.body
    try:
        videos.retrieve("video_" + "0" * 32)
        raise AssertionError("a job that is none was found")
    except openai.NotFoundError as e:
        assert e.type == "not_found_error", e.body

with parts("a wrong token is refused"):
    try:
        openai.OpenAI(api_key="wrong", base_url=url + "/v1", max_retries=0).videos.list()
        raise AssertionError("a wrong token was taken")
    except openai.AuthenticationError as e:
        assert e.type == "authentication_error", e.body

with parts("delete, and it is gone"):
    for id in made:
        gone = videos.delete(id)
        assert gone.id == id and gone.deleted is True and gone.object == "video.deleted", gone
        try:
            videos.retrieve(id)
            raise AssertionError("a deleted job was found")
        except openai.NotFoundError:
            pass

with parts("models"):
    names = [m.id for m in client.models.list()]
    assert len(names) == 1 and client.models.retrieve(names[0]).id == names[0], names

sys.exit(parts.end())

// An image from the camera, in a dialog.

const $ = (id) => document.getElementById(id);

// Only pages from this machine or over TLS are let near a camera.
export const canTake = Boolean(navigator.mediaDevices?.getUserMedia);

// A File, or nothing when the dialog was closed. Raises an Error where there is no camera.
export async function take() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    throw new Error("There is no camera, or this page may not use it.");
  }
  const [dialog, video] = [$("camera-dialog"), $("camera-shown")];
  try {
    video.srcObject = stream;
    dialog.returnValue = "";
    dialog.showModal();
    await video.play();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    return dialog.returnValue === "take" ? await still(video) : null;
  } finally {
    if (dialog.open) dialog.close();
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  }
}

function still(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => {
    canvas.toBlob((blob) => resolve(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
  });
}
